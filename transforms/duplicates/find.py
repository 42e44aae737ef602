"""Examples that are copies of each other, and labels that conflict among them: of signatures,
groups.

What is compared closely is few: pairs that signatures say are alike and whose labels differ. Their
features are read again, the closest pairs first, as many as fit into a budget of memory; how many
were left out is told.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms.core.shapes import Span
from transforms.duplicates import signatures
from transforms.duplicates.directions import Directions
from transforms.duplicates.groups import Groups, group
from transforms.duplicates.signatures import TABLES, Pairs, Signatures
from transforms.runtime import counters
from transforms.storage.feature_set import FeatureSet

# Of sets up to this size all signatures are looked at in one place (0.2 GB); of larger ones, each
# part of each table in its own.
_ROWS_IN_ONE_PLACE = 1 << 22
_ROWS_PER_PART = 1 << 20
# What the vectors of all pairs that are compared closely may take.
_VECTOR_BYTES = 256 << 20
_EVERY_TABLE = -1
# Pairs are sorted out when so many wait.
_WAITING_PAIRS = 1 << 20


def spread(signatures: Signatures, examples: int) -> Iterator[tuple[tuple[int, int], Signatures]]:
    """The signatures of a feature file by where they are looked at: ((table, part), Signatures)."""
    if examples <= _ROWS_IN_ONE_PLACE:
        yield (_EVERY_TABLE, 0), signatures
        return
    bits = (examples // _ROWS_PER_PART).bit_length()
    for table in range(TABLES):
        parts = (signatures.keys(table) >> np.uint64(64 - bits)).astype(np.int64)
        for part in np.unique(parts).tolist():
            yield (table, part), signatures.take(parts == part)


def pair_limit(found: FeatureSet) -> int:
    """How many pairs are compared closely."""
    return _VECTOR_BYTES // (2 * 4 * len(found.manifest.checkpoints) * found.manifest.units)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs to compare closely, the closest first, and about how many more there would be."""

    pairs: Pairs
    left_out: int

    @staticmethod
    def of(parts: Iterable[Pairs], limit: int, left_out: int = 0) -> Candidates:
        """The closest pairs; those of equal inputs need no comparison and are all kept."""
        kept = Pairs.merge([])
        waiting: list[Pairs] = []
        worst = math.inf
        for part in parts:
            near = part.distances <= worst
            left_out += len(near) - int(near.sum())
            waiting.append(part.take(near))
            # Where nearly all examples are alike there are many times as many as are wanted.
            if sum(len(one.distances) for one in waiting) > _WAITING_PAIRS:
                kept, more = _closest([kept, *waiting], limit)
                left_out += more
                waiting = []
                worst = kept.distances[-1] if (kept.distances >= 0).sum() >= limit > 0 else math.inf
        kept, more = _closest([kept, *waiting], limit)
        return Candidates(kept, left_out + more)


def _closest(parts: Sequence[Pairs], limit: int) -> tuple[Pairs, int]:
    """Pairs of equal inputs, the closest others, and how many more there are."""
    pairs = Pairs.merge(parts)
    kept = min(len(pairs.distances), int((pairs.distances < 0).sum()) + limit)
    return pairs.take(np.arange(kept)), len(pairs.distances) - kept


def _find(
    grouped: tuple[tuple[int, int], Iterable[Signatures]], found: FeatureSet, least: float
) -> Candidates:
    (table, _), parts = grouped
    tables = range(TABLES) if table == _EVERY_TABLE else (table,)
    return Candidates.of(
        signatures.candidates(Signatures.concatenate(parts), tables, least), pair_limit(found)
    )


def _choose(_: None, parts: Sequence[Candidates], found: FeatureSet) -> Candidates:
    chosen = Candidates.of(
        (one.pairs for one in parts), pair_limit(found), sum(one.left_out for one in parts)
    )
    counters.add("pairs-compared", int((chosen.pairs.distances >= 0).sum()))
    return chosen


def _list_places(chosen: Candidates) -> Iterator[tuple[int, np.ndarray]]:
    places = np.unique(chosen.pairs.places[chosen.pairs.distances >= 0])
    for file in np.unique(places >> 32).tolist():
        yield file, places[places >> 32 == file]


def read_vectors(
    wanted: tuple[int, np.ndarray], found: FeatureSet, directions: Directions
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a feature file again: places [n] and vectors [n, d] of those of its examples that are
    wanted.
    """
    file, places = wanted
    payloads = found.payloads(Span(file, 0, found.manifest.files[file].count))
    features = found.decode([payloads[row] for row in (places & 0xFFFFFFFF).tolist()])
    return places, directions.vectors(features.activations)


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """The groups of a set.

    Attributes:
        groups: of copies.
        left_out: candidates that were not compared, for want of memory.
    """

    groups: Groups
    left_out: int


def join(
    chosen: Candidates, vectors: Iterable[tuple[np.ndarray, np.ndarray]], least: float
) -> Duplicates:
    """Groups of what has equal inputs, and of what is at least so similar with another label."""
    known = sorted(vectors, key=lambda pair: int(pair[0][0]))
    places = np.concatenate([np.empty(0, np.int64), *(one for one, _ in known)])
    pairs = chosen.pairs
    similar = np.ones(len(pairs.distances))
    near = np.flatnonzero(pairs.distances >= 0)
    if len(near):
        rows = np.searchsorted(places, pairs.places[near])
        stacked = np.concatenate([one for _, one in known])
        for start in range(0, len(near), 4096):
            part = slice(start, start + 4096)
            similar[near[part]] = signatures.similarities(
                stacked[rows[part, 0]], stacked[rows[part, 1]]
            )
    kept = (pairs.distances < 0) | (similar >= least)
    return Duplicates(group(pairs.places[kept], pairs.labels[kept], similar[kept]), chosen.left_out)


@dataclasses.dataclass
class FindDuplicates(beam.PTransform):
    """Finds duplicates: (FeatureSet (one), Signatures of each feature file, Directions (one)) →
    Duplicates (one).

    Attributes:
        least: the similarity from which on examples with different labels are copies.
    """

    least: float

    def expand(
        self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]
    ) -> beam.PCollection:
        sets, signatures, directions = collections
        found = beam.pvalue.AsSingleton(sets)
        chosen = (
            signatures
            | "SpreadSignatures"
            >> beam.FlatMap(
                lambda one, sets: spread(one, sets.manifest.examples), found
            )  # ((table, part), Signatures)
            | "GroupSignatures" >> beam.GroupByKey()  # ((table, part), [Signatures])
            | "FindCandidates" >> beam.Map(_find, found, self.least)  # Candidates
        )
        candidates = (
            signatures.pipeline
            | "StartDuplicates" >> beam.Create([None])
            | "ChooseCandidates"
            >> beam.Map(_choose, beam.pvalue.AsList(chosen), found)  # Candidates
        )
        vectors = (
            candidates
            | "ListCandidates" >> beam.FlatMap(_list_places)  # (file, places)
            | "SpreadCandidates" >> beam.Reshuffle()  # (file, places)
            | "ReadCandidates"
            >> beam.Map(
                read_vectors, found, beam.pvalue.AsSingleton(directions)
            )  # (places, vectors)
        )
        return candidates | "JoinDuplicates" >> beam.Map(
            join, beam.pvalue.AsList(vectors), self.least
        )  # Duplicates
