"""Drift: the changes of examples, of suspects, and of each class's distribution of self-influence
between two audits.

Examples are matched by id. The rows of both audits are spread over buckets by a hash of the id, and
buckets are compared one by one. The changed examples and suspects are rows of `changes-*.parquet`.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.ids import id_hashes
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest

# Rows of the previous audit in a bucket, about; a join of so many takes some 10 MB.
_ROWS_PER_BUCKET = 50_000
# Resolution of distributions: a sixteenth of an octave, 4 %.
_BINS_PER_OCTAVE = 16
# The bin of a self-influence of 0, below that of any float64.
_LOWEST_BIN = -(1 << 15)

EXAMPLE_CHANGES = ("new", "gone", "changed", "relabelled")
SUSPECT_CHANGES = ("appeared", "stayed", "fixed", "gone")

COLUMNS = ("example_id", "content_digest", "label", "suspicion", "self_influence")


def spread(table: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields the rows of an audit by bucket: (bucket, the columns that are compared)."""
    compared = table.select(COLUMNS)
    hashes = id_hashes(example_id.encode() for example_id in compared["example_id"].to_pylist())
    numbers = (hashes % buckets).astype(np.int64)
    for bucket in np.unique(numbers).tolist():
        yield bucket, compared.filter(pa.array(numbers == bucket))


def buckets(previous: Manifest) -> int:
    """Returns the number of buckets."""
    return max(1, previous.counts["examples"] // _ROWS_PER_BUCKET)


def read_rows(file: StoredFile, directory: str, count: int) -> Iterator[tuple[int, pa.Table]]:
    """Reads, verifies and spreads a file of the previous audit's rows over `count` buckets."""
    yield from spread(
        pq.read_table(
            io.BytesIO(filesystems.read_verified(directory, file)), columns=list(COLUMNS)
        ),
        count,
    )


def example_files(previous: Manifest) -> list[StoredFile]:
    """Returns the files of rows of an audit."""
    return [file for file in previous.files if file.name.startswith("examples-")]


@dataclasses.dataclass(frozen=True, eq=False)
class Distributions:
    """Distributions of self-influence by label, as counts; they are equal in whatever order they
    are added.

    Attributes:
        keys: [m, 2] int64, ascending: label and bin.
        counts: [m] int64.
    """

    keys: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(labels: np.ndarray, self_influence: np.ndarray) -> Distributions:
        """Counts examples."""
        with np.errstate(divide="ignore"):
            octaves = np.log2(self_influence) * _BINS_PER_OCTAVE
        bins = np.where(
            np.isfinite(octaves), np.floor(np.nan_to_num(octaves, neginf=0)), _LOWEST_BIN
        ).astype(np.int64)
        keys, counts = np.unique(np.stack([labels, bins], axis=1), axis=0, return_counts=True)
        return Distributions(keys, counts)

    @staticmethod
    def merge(parts: Sequence[Distributions]) -> Distributions:
        """Adds counts."""
        keys, indices = np.unique(
            np.concatenate([part.keys for part in parts]), axis=0, return_inverse=True
        )
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, indices.reshape(-1), np.concatenate([part.counts for part in parts]))
        return Distributions(keys, counts)

    def octaves(self) -> list[tuple[float, float, int]]:
        """Counts the examples of all labels from each power of two to the next, without gaps: (low,
        high, count). Self-influences of 0 are left out.
        """
        above = self.keys[:, 1] != _LOWEST_BIN
        octave = self.keys[above, 1] // _BINS_PER_OCTAVE
        if not len(octave):
            return []
        first = int(octave.min())
        counts = np.bincount(octave - first, self.counts[above])
        return [
            (2.0 ** (first + i), 2.0 ** (first + i + 1), int(count))
            for i, count in enumerate(counts)
        ]


def shift(now: Distributions, then: Distributions, label: int) -> tuple[float | None, float | None]:
    """Returns the Kolmogorov-Smirnov distance between two distributions of a label's
    self-influence, and the p-value of equal distributions.

    Both are None where either side has no example of the label. The distance is that of the binned
    values, at most the exact distance. The p-value is asymptotic (Stephens 1970).
    """
    sides = (now, then)
    chosen = [side.keys[:, 0] == label for side in sides]
    counts = [side.counts[rows] for side, rows in zip(sides, chosen, strict=True)]
    sizes = [int(count.sum()) for count in counts]
    if not all(sizes):
        return None, None
    bins = [side.keys[rows, 1] for side, rows in zip(sides, chosen, strict=True)]
    every = np.union1d(*bins)
    cumulative = [
        np.concatenate([[0], np.cumsum(count)])[np.searchsorted(own, every, side="right")] / size
        for own, count, size in zip(bins, counts, sizes, strict=True)
    ]
    distance = float(np.abs(cumulative[0] - cumulative[1]).max())
    root = math.sqrt(sizes[0] * sizes[1] / (sizes[0] + sizes[1]))
    scaled = (root + 0.12 + 0.11 / root) * distance
    # The series converges slowly near 0, where the p-value is 1 to ten digits.
    p_value = (
        1.0
        if scaled < 0.2
        else 2 * sum((-1) ** (j - 1) * math.exp(-2 * (j * scaled) ** 2) for j in range(1, 101))
    )
    return distance, min(1.0, max(0.0, p_value))


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """The changes in a bucket.

    Attributes:
        bucket: its number.
        rows: a row of `ROWS` for each example or suspect that changed, by id.
        examples, suspects: number of changes of each kind; an example may be `changed` and
            `relabelled`.
        now, then: distributions of self-influence in the new and in the previous audit.
    """

    bucket: int
    rows: pa.Table
    examples: Mapping[str, int]
    suspects: Mapping[str, int]
    now: Distributions
    then: Distributions


ROWS = pa.schema(
    [
        ("example_id", pa.string()),
        ("example", pa.string()),
        ("suspect", pa.string()),
        ("label", pa.int64()),
        ("previous_label", pa.int64()),
        ("suspicion", pa.float64()),
        ("previous_suspicion", pa.float64()),
    ]
)


def compare(
    bucket: int, now: pa.Table, then: pa.Table, min_suspicion: float, previous_min_suspicion: float
) -> Changes:
    """Compares the rows of a bucket in the new and in the previous audit, each with its own least
    suspicion of a suspect.
    """
    joined = (
        now.join(then, "example_id", join_type="full outer", left_suffix="", right_suffix="_then")
        .sort_by("example_id")
        .combine_chunks()
    )
    examples = _example_changes(joined)
    suspects = _suspect_changes(joined, min_suspicion, previous_min_suspicion)
    listed = np.logical_or.reduce([*examples.values(), suspects["appeared"], suspects["fixed"]])
    rows = pa.table(
        [
            joined["example_id"],
            _last_true(examples),
            _last_true(suspects),
            *(joined[name] for name in ("label", "label_then", "suspicion", "suspicion_then")),
        ],
        schema=ROWS,
    ).filter(pa.array(listed))
    return Changes(
        bucket,
        rows,
        _counts(examples),
        _counts(suspects),
        _distributions(now),
        _distributions(then),
    )


def _counts(masks: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def _distributions(table: pa.Table) -> Distributions:
    return Distributions.of(table["label"].to_numpy(), table["self_influence"].to_numpy())


def _example_changes(joined: pa.Table) -> dict[str, np.ndarray]:
    """Masks of the joined rows by kind of change."""
    here, there = (~joined[name].is_null().to_numpy() for name in ("label", "label_then"))
    both = here & there
    # `relabelled` comes last, since the content of a relabelled example always changes, too.
    return {
        "new": here & ~there,
        "gone": there & ~here,
        "changed": both & _differ(joined, "content_digest"),
        "relabelled": both & _differ(joined, "label"),
    }


def _suspect_changes(
    joined: pa.Table, min_suspicion: float, previous_min_suspicion: float
) -> dict[str, np.ndarray]:
    """Masks of the joined rows by kind of change."""
    here = ~joined["label"].is_null().to_numpy()
    # A missing row has no suspicion.
    suspect, was = (
        np.nan_to_num(_column(joined, name).astype(np.float64), nan=-1) >= least
        for name, least in (
            ("suspicion", min_suspicion),
            ("suspicion_then", previous_min_suspicion),
        )
    )
    return {
        "appeared": suspect & ~was,
        "stayed": suspect & was,
        "fixed": was & here & ~suspect,
        "gone": was & ~here,
    }


def _column(joined: pa.Table, name: str) -> np.ndarray:
    return joined[name].to_numpy(zero_copy_only=False)


def _differ(joined: pa.Table, name: str) -> np.ndarray:
    return _column(joined, name) != _column(joined, f"{name}_then")


def _last_true(masks: Mapping[str, np.ndarray]) -> pa.Array:
    """For each row the name of the last mask that is true there, or null."""
    names = np.full(len(next(iter(masks.values()))), None, object)
    for name, mask in masks.items():
        names[mask] = name
    return pa.array(names, pa.string())


def summarize(parts: Sequence[Changes], previous: Mapping[str, Any]) -> dict[str, Any]:
    """Summarises the changes of all buckets for `summary.json`; `previous` describes the previous
    audit.
    """
    now, then = (
        Distributions.merge([getattr(part, name) for part in parts]) for name in ("now", "then")
    )
    table = []
    for label in np.union1d(now.keys[:, 0], then.keys[:, 0]).tolist():
        distance, p_value = shift(now, then, label)
        sizes = (int(side.counts[side.keys[:, 0] == label].sum()) for side in (now, then))
        table.append(
            {
                "label": label,
                "examples": next(sizes),
                "previous_examples": next(sizes),
                "distance": distance,
                "p_value": p_value,
            }
        )
    return {
        "previous": dict(previous),
        "examples": {name: sum(part.examples[name] for part in parts) for name in EXAMPLE_CHANGES},
        "suspects": {name: sum(part.suspects[name] for part in parts) for name in SUSPECT_CHANGES},
        "classes": table,
    }


@dataclasses.dataclass
class CompareAudits(beam.PTransform):
    """Compares an audit's rows with those of a previous audit: (rows: pa.Table, previous: Manifest
    (one)) → Changes of each bucket.

    Attributes:
        directory: of the previous audit.
        min_suspicion: least suspicion of a suspect in the new audit.
    """

    directory: str
    min_suspicion: float

    def _read(self, file: StoredFile, previous: Manifest) -> Iterator[tuple[int, pa.Table]]:
        yield from read_rows(file, self.directory, buckets(previous))

    def _compare(
        self, joined: tuple[int, Mapping[str, Iterable[pa.Table]]], previous: Manifest
    ) -> Changes:
        bucket, sides = joined
        now, then = (pa.concat_tables([_EMPTY, *sides[name]]) for name in ("now", "then"))
        return compare(bucket, now, then, self.min_suspicion, previous.settings["min_suspicion"])

    def expand(self, collections: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        rows, manifests = collections
        previous = beam.pvalue.AsSingleton(manifests)
        then = (
            manifests
            | "ListPreviousFiles" >> beam.FlatMap(example_files)  # StoredFile
            | "SpreadPreviousFiles" >> beam.Reshuffle()  # StoredFile
            | "ReadPreviousRows" >> beam.FlatMap(self._read, previous)  # (bucket, pa.Table)
        )
        now = rows | "SpreadRows" >> beam.FlatMap(
            lambda table, previous: spread(table, buckets(previous)), previous
        )  # (bucket, pa.Table)
        return (
            {"now": now, "then": then}
            | "JoinRows" >> beam.CoGroupByKey()  # (bucket, {now: [pa.Table], then: [pa.Table]})
            | "CompareRows" >> beam.Map(self._compare, previous)  # Changes
        )


_EMPTY = pa.table(
    {
        "example_id": pa.array([], pa.string()),
        "content_digest": pa.array([], pa.string()),
        "label": pa.array([], pa.int64()),
        "suspicion": pa.array([], pa.float64()),
        "self_influence": pa.array([], pa.float64()),
    }
)
