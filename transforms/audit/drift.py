"""What changed between two audits: examples, suspects, and how self-influence is distributed in
each class.

Examples are matched by id. Both audits' rows are spread over buckets by a hash of the id, as
arrays, and each bucket is compared at once.
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

_ROWS_PER_BUCKET = 50_000
# Self-influences are told apart to a sixteenth of an octave.
_BINS_PER_OCTAVE = 16
_LOWEST_BIN = -(1 << 15)

EXAMPLE_CHANGES = ("new", "gone", "changed", "relabelled")
SUSPECT_CHANGES = ("appeared", "stayed", "fixed", "gone")

COLUMNS = ("example_id", "content_digest", "label", "suspicion", "self_influence")


def spread(table: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Rows of an audit by bucket: (bucket, the columns that are compared)."""
    kept = table.select(COLUMNS)
    place = (id_hashes(one.encode() for one in kept["example_id"].to_pylist()) % buckets).astype(
        np.int64
    )
    for bucket in np.unique(place).tolist():
        yield bucket, kept.filter(pa.array(place == bucket))


def buckets(previous: Manifest) -> int:
    """How many buckets there are."""
    return max(1, previous.counts["examples"] // _ROWS_PER_BUCKET)


def read_rows(file: StoredFile, directory: str, count: int) -> Iterator[tuple[int, pa.Table]]:
    """Reads, verifies and spreads a file of the previous audit's rows."""
    yield from spread(
        pq.read_table(
            io.BytesIO(filesystems.read_verified(directory, file)), columns=list(COLUMNS)
        ),
        count,
    )


def example_files(previous: Manifest) -> list[StoredFile]:
    """The files of rows of an audit."""
    return [file for file in previous.files if file.name.startswith("examples-")]


@dataclasses.dataclass(frozen=True, eq=False)
class Distributions:
    """How many examples of each label have which self-influence; equal in whatever order they are
    added.

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
        """Adds counts up."""
        keys, places = np.unique(
            np.concatenate([part.keys for part in parts]), axis=0, return_inverse=True
        )
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, places.reshape(-1), np.concatenate([part.counts for part in parts]))
        return Distributions(keys, counts)

    def octaves(self) -> list[tuple[float, float, int]]:
        """How many examples of any label there are from each power of two to the next, without
        gaps; zeros are left out.
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
    """The Kolmogorov-Smirnov distance between a label's self-influences, and the p-value of their
    being drawn from one distribution.

    Both None where one of them has no example of the label. The distance is that of the binned
    values, at most the exact one; the p-value is the asymptotic one (Stephens 1970).
    """
    chosen = [one.keys[:, 0] == label for one in (now, then)]
    counts = [one.counts[rows] for one, rows in zip((now, then), chosen, strict=True)]
    sizes = [int(one.sum()) for one in counts]
    if not all(sizes):
        return None, None
    bins = [one.keys[rows, 1] for one, rows in zip((now, then), chosen, strict=True)]
    every = np.union1d(*bins)
    cumulative = [
        np.concatenate([[0], np.cumsum(count)])[np.searchsorted(one, every, side="right")] / size
        for one, count, size in zip(bins, counts, sizes, strict=True)
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
    """What changed in a bucket.

    Attributes:
        bucket: its number.
        rows: the examples and suspects that changed, by id; see `compare`.
        examples, suspects: how many there are of each kind of change; an example may be `changed`
            and `relabelled`.
        now, then: self-influences.
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
    """Compares the rows of a bucket, each with the suspicion from which on an example is a
    suspect.
    """
    joined = (
        now.join(then, "example_id", join_type="full outer", left_suffix="", right_suffix="_then")
        .sort_by("example_id")
        .combine_chunks()
    )
    column = {
        name: joined[name].to_numpy(zero_copy_only=False)
        for name in joined.column_names
        if name != "example_id"
    }
    here, there = (~joined[name].is_null().to_numpy() for name in ("label", "label_then"))
    both = here & there
    suspect, was = (
        present & (np.nan_to_num(column[name].astype(np.float64), nan=-1) >= least)
        for present, name, least in (
            (here, "suspicion", min_suspicion),
            (there, "suspicion_then", previous_min_suspicion),
        )
    )
    found = {
        "new": here & ~there,
        "gone": there & ~here,
        "changed": both & (column["content_digest"] != column["content_digest_then"]),
        "relabelled": both & (column["label"] != column["label_then"]),
    }
    suspects = {
        "appeared": suspect & ~was,
        "stayed": suspect & was,
        "fixed": was & here & ~suspect,
        "gone": was & ~here,
    }
    # Of an example with another label it says more that it has one than that its content is
    # another, which it always is.
    what, how = (np.full(len(here), None, object) for _ in range(2))
    for names, column_of in ((found, what), (suspects, how)):
        for name, rows in names.items():
            column_of[rows] = name
    told = np.logical_or.reduce(list(found.values())) | suspects["appeared"] | suspects["fixed"]
    rows = pa.table(
        [
            joined["example_id"],
            pa.array(what, pa.string()),
            pa.array(how, pa.string()),
            *(joined[name] for name in ("label", "label_then", "suspicion", "suspicion_then")),
        ],
        schema=ROWS,
    ).filter(pa.array(told))
    counted = ({name: int(rows.sum()) for name, rows in one.items()} for one in (found, suspects))
    influences = (
        Distributions.of(table["label"].to_numpy(), table["self_influence"].to_numpy())
        for table in (now, then)
    )
    return Changes(bucket, rows, next(counted), next(counted), next(influences), next(influences))


def summarize(parts: Sequence[Changes], previous: Mapping[str, Any]) -> dict[str, Any]:
    """What `summary.json` holds of all buckets; `previous` says with what was compared."""
    now, then = (
        Distributions.merge([getattr(part, name) for part in parts]) for name in ("now", "then")
    )
    table = []
    for label in np.union1d(now.keys[:, 0], then.keys[:, 0]).tolist():
        distance, p_value = shift(now, then, label)
        sizes = (int(one.counts[one.keys[:, 0] == label].sum()) for one in (now, then))
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


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What an audit may find at most before somebody is told; None where anything goes.

    Attributes:
        max_suspect_fraction: suspects among the examples.
        max_appeared_suspects: suspects that were none, or not there, in the previous audit.
        max_shift: the Kolmogorov-Smirnov distance of self-influence, of any class.
    """

    max_suspect_fraction: float | None = None
    max_appeared_suspects: int | None = None
    max_shift: float | None = None

    def crossed(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The thresholds that an audit's summary crosses: name, limit, and what was found."""
        found: dict[str, tuple[float, str]] = {
            "max_suspect_fraction": (
                summary["suspects"] / summary["examples"],
                "the fraction of suspects among the examples",
            ),
        }
        if "drift" in summary:
            shifts = [
                row["distance"]
                for row in summary["drift"]["classes"]
                if row["distance"] is not None
            ]
            found["max_appeared_suspects"] = (
                summary["drift"]["suspects"]["appeared"],
                "the number of suspects that appeared",
            )
            found["max_shift"] = (
                max(shifts, default=0.0),
                "the largest shift of a class's self-influence",
            )
        return [
            {"threshold": name, "limit": limit, "found": value, "what": what}
            for name, (value, what) in found.items()
            for limit in (getattr(self, name),)
            if limit is not None and value > limit
        ]


@dataclasses.dataclass
class CompareAudits(beam.PTransform):
    """Compares an audit's rows with those of a previous one: pa.Table → Changes of each bucket.

    Attributes:
        directory, previous: of the previous audit.
        min_suspicion: from which suspicion on an example is a suspect now.
    """

    directory: str
    previous: Manifest
    min_suspicion: float

    def _compare(self, joined: tuple[int, Mapping[str, Iterable[pa.Table]]]) -> Changes:
        bucket, sides = joined
        now, then = (pa.concat_tables([_EMPTY, *sides[name]]) for name in ("now", "then"))
        return compare(
            bucket, now, then, self.min_suspicion, self.previous.settings["min_suspicion"]
        )

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        count = buckets(self.previous)
        then = (
            tables.pipeline
            | "ListPreviousFiles"
            >> beam.Create(example_files(self.previous), reshuffle=False)  # StoredFile
            | "SpreadPreviousFiles" >> beam.Reshuffle()  # StoredFile
            | "ReadPreviousRows"
            >> beam.FlatMap(read_rows, self.directory, count)  # (bucket, pa.Table)
        )
        now = tables | "SpreadRows" >> beam.FlatMap(spread, count)  # (bucket, pa.Table)
        return (
            {"now": now, "then": then}
            | "JoinRows" >> beam.CoGroupByKey()  # (bucket, {now: [pa.Table], then: [pa.Table]})
            | "CompareRows" >> beam.Map(self._compare)  # Changes
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
