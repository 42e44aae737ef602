"""The search for duplicates: signatures propose pairs, exact similarities decide, and connected
pairs are groups.

Features are read again for those pairs alone that signatures propose and whose labels differ: the
closest pairs first, as many as fit into a budget of memory. The others are counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms.core.shapes import Span
from transforms.duplicates import signatures
from transforms.duplicates.config import DuplicateTuning
from transforms.duplicates.directions import Directions, similarities
from transforms.duplicates.groups import Groups, group
from transforms.duplicates.signatures import TABLES, Pairs, Signatures
from transforms.runtime import counters
from transforms.storage.feature_set import FeatureSet

_ALL_TABLES = -1

# Pairs whose similarities are computed at once; bounds the float64 copies of their vectors.
_PAIRS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """The duplicates of a feature set.

    Attributes:
        groups: groups of duplicates.
        left_out: number of proposed pairs that were not compared, for lack of memory.
    """

    groups: Groups
    left_out: int


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs to compare, the closest first, and about how many more were proposed."""

    pairs: Pairs
    left_out: int

    @staticmethod
    def of(
        parts: Iterable[Pairs],
        limit: int,
        left_out: int = 0,
        waiting_pairs: int = DuplicateTuning.waiting_pairs,
    ) -> Candidates:
        """Returns the `limit` closest pairs, and all pairs of equal inputs, which need no
        comparison.

        `left_out` pairs were left out before. While parts come, about `waiting_pairs` are held.
        """
        kept = Pairs.merge([])
        waiting: list[Pairs] = []
        worst = math.inf
        for part in parts:
            near = part.distances <= worst
            left_out += len(near) - int(near.sum())
            waiting.append(part.take(near))
            if sum(len(pairs.distances) for pairs in waiting) > waiting_pairs:
                kept, more = _closest([kept, *waiting], limit)
                left_out += more
                waiting = []
                worst = kept.distances[-1] if (kept.distances >= 0).sum() >= limit > 0 else math.inf
        kept, more = _closest([kept, *waiting], limit)
        return Candidates(kept, left_out + more)


def _closest(parts: Sequence[Pairs], limit: int) -> tuple[Pairs, int]:
    """The pairs of equal inputs, the `limit` closest others, and the number of further pairs."""
    pairs = Pairs.merge(parts)
    kept = min(len(pairs.distances), int((pairs.distances < 0).sum()) + limit)
    return pairs.take(np.arange(kept)), len(pairs.distances) - kept


def spread(
    signatures: Signatures, examples: int, tuning: DuplicateTuning
) -> Iterator[tuple[tuple[int, int], Signatures]]:
    """Yields the signatures of a feature file by where they are compared: ((table, part),
    Signatures); `examples` is the size of the whole set.
    """
    if examples <= tuning.rows_at_once:
        yield (_ALL_TABLES, 0), signatures
        return
    bits = (examples // tuning.rows_per_part).bit_length()
    for table in range(TABLES):
        parts = (signatures.keys(table) >> np.uint64(64 - bits)).astype(np.int64)
        for part in np.unique(parts).tolist():
            yield (table, part), signatures.take(parts == part)


def pair_limit(features: FeatureSet, tuning: DuplicateTuning) -> int:
    """Returns how many pairs are compared: two float32 vectors [T·D] each fit into the budget."""
    return tuning.vector_bytes // (
        2 * 4 * len(features.manifest.checkpoints) * features.manifest.units
    )


def read_vectors(
    examples: tuple[int, np.ndarray], features: FeatureSet, directions: Directions
) -> tuple[np.ndarray, np.ndarray]:
    """Reads some examples of a feature file, (file, record numbers [n]): returns the record numbers
    and the vectors [n, d].
    """
    file, records = examples
    payloads = features.payloads(Span(file, 0, features.manifest.files[file].count))
    chosen = features.decode([payloads[i] for i in signatures.indices_of(records).tolist()])
    return records, directions.vectors(chosen.activations)


def join(
    candidates: Candidates,
    vectors: Iterable[tuple[np.ndarray, np.ndarray]],
    min_similarity: float,
) -> Duplicates:
    """Groups equal inputs, and examples with different labels and at least this similarity."""
    known = sorted(vectors, key=lambda pair: int(pair[0][0]))
    records = np.concatenate([np.empty(0, np.int64), *(own for own, _ in known)])
    pairs = candidates.pairs
    similar = np.ones(len(pairs.distances))
    near = np.flatnonzero(pairs.distances >= 0)
    if len(near):
        rows = np.searchsorted(records, pairs.records[near])
        stacked = np.concatenate([own for _, own in known])
        for start in range(0, len(near), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            similar[near[part]] = similarities(stacked[rows[part, 0]], stacked[rows[part, 1]])
    kept = (pairs.distances < 0) | (similar >= min_similarity)
    return Duplicates(
        group(pairs.records[kept], pairs.labels[kept], similar[kept]), candidates.left_out
    )


@dataclasses.dataclass
class FindDuplicates(beam.PTransform):
    """Finds duplicates: (FeatureSet (one), Signatures of each feature file, Directions (one)) →
    Duplicates (one).

    Attributes:
        min_similarity: least similarity of duplicates with different labels.
        tuning: limits of memory.
    """

    min_similarity: float
    tuning: DuplicateTuning = dataclasses.field(default_factory=DuplicateTuning)

    def _propose(
        self, grouped: tuple[tuple[int, int], Iterable[Signatures]], features: FeatureSet
    ) -> Candidates:
        (table, _), parts = grouped
        tables = range(TABLES) if table == _ALL_TABLES else (table,)
        return Candidates.of(
            signatures.candidates(Signatures.concatenate(parts), tables, self.min_similarity),
            pair_limit(features, self.tuning),
            waiting_pairs=self.tuning.waiting_pairs,
        )

    def _choose(self, _: None, parts: Sequence[Candidates], features: FeatureSet) -> Candidates:
        chosen = Candidates.of(
            (part.pairs for part in parts),
            pair_limit(features, self.tuning),
            sum(part.left_out for part in parts),
            self.tuning.waiting_pairs,
        )
        counters.add("pairs-compared", int((chosen.pairs.distances >= 0).sum()))
        return chosen

    def expand(
        self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]
    ) -> beam.PCollection:
        sets, signatures, directions = collections
        features = beam.pvalue.AsSingleton(sets)
        proposed = (
            signatures
            | "SpreadSignatures"
            >> beam.FlatMap(
                lambda part, features: spread(part, features.manifest.examples, self.tuning),
                features,
            )  # ((table, part), Signatures)
            | "GroupSignatures" >> beam.GroupByKey()  # ((table, part), [Signatures])
            | "FindCandidates" >> beam.Map(self._propose, features)  # Candidates
        )
        candidates = (
            signatures.pipeline
            | "StartDuplicates" >> beam.Create([None])
            | "ChooseCandidates"
            >> beam.Map(self._choose, beam.pvalue.AsList(proposed), features)  # Candidates
        )
        vectors = (
            candidates
            | "ListCandidates" >> beam.FlatMap(_list_records)  # (file, record numbers)
            | "SpreadCandidates" >> beam.Reshuffle()  # (file, record numbers)
            | "ReadCandidates"
            >> beam.Map(read_vectors, features, beam.pvalue.AsSingleton(directions))
            # (record numbers, vectors)
        )
        return candidates | "JoinDuplicates" >> beam.Map(
            join, beam.pvalue.AsList(vectors), self.min_similarity
        )  # Duplicates


def _list_records(candidates: Candidates) -> Iterator[tuple[int, np.ndarray]]:
    """The examples to read again, by feature file: (file, record numbers)."""
    records = np.unique(candidates.pairs.records[candidates.pairs.distances >= 0])
    files = signatures.files_of(records)
    for file in np.unique(files).tolist():
        yield file, records[files == file]
