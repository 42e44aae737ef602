"""Traces: the worst-predicted test examples, the strongest candidates of each, and their pictures.

Rows of influence name examples by their ids. The origins of the few that are shown are looked up in
the feature sets, once the rows are known: carrying them with every candidate would make all that
travels several times larger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.core.ids import example_of
from transforms.core.origins import Origin
from transforms.core.shapes import Span
from transforms.influence.protocol import ScoredBlock
from transforms.reports.previews import NO_TENSORFLOW, Preview, preview_format
from transforms.storage.feature_set import FeatureSet
from transforms.storage.records import feature_record

# Test examples in the report, and candidates of each sign of each.
_SHOWN = 50
_CANDIDATES = 5


@dataclasses.dataclass(frozen=True)
class Trace:
    """A test example of the report.

    Attributes:
        row: its row of the result, with no more candidates than are shown.
        label_probability: of its label at the last checkpoint; NaN for a regression.
    """

    row: dict[str, Any]
    label_probability: float

    @property
    def order(self) -> tuple[float, float, bytes]:
        """Sorts the worst predicted first: by the least probability of the label, or, without
        any, by the largest self-influence; then by id.
        """
        known = not np.isnan(self.label_probability)
        return (
            self.label_probability if known else 0.0,
            -self.row["self_influence"],
            self.row["test_id"].encode(),
        )


def worst(traces: Iterable[Trace]) -> list[Trace]:
    """Returns the test examples that are shown, in order."""
    return sorted(traces, key=lambda trace: trace.order)[:_SHOWN]


def of_rows(table: pa.Table, blocks: Sequence[ScoredBlock]) -> list[Trace]:
    """Returns the worst of a shard's rows, which come from these blocks in order."""
    probabilities = np.concatenate([block.label_probabilities for block in blocks])
    probabilities = probabilities.astype(np.float64)
    influence = table["self_influence"].to_numpy()
    ordered = np.lexsort((-influence, np.where(np.isnan(probabilities), 0, probabilities)))
    # All that are as bad as the last that is shown: ids decide between them.
    last = ordered[min(_SHOWN, len(ordered)) - 1]
    tied = (probabilities == probabilities[last]) | (
        np.isnan(probabilities) & np.isnan(probabilities[last])
    )
    chosen = np.union1d(ordered[:_SHOWN], np.flatnonzero(tied & (influence == influence[last])))
    traces = []
    for i, row in zip(chosen.tolist(), table.take(pa.array(chosen)).to_pylist(), strict=True):
        cut = {name: row[name][:_CANDIDATES] for name in ("proponents", "opponents")}
        traces.append(Trace({**row, **cut}, float(probabilities[i])))
    return worst(traces)


def shown_ids(traces: Sequence[Trace]) -> tuple[set[str], set[str]]:
    """Returns the ids of the test examples and of the training examples that are shown."""
    candidates = {
        candidate["train_id"]
        for trace in traces
        for name in ("proponents", "opponents")
        for candidate in trace.row[name]
    }
    return {trace.row["test_id"] for trace in traces}, candidates


def find_origins(
    file: int, feature_set: FeatureSet, ids: set[str], positions: bool = False
) -> Iterator[tuple[str, tuple[str, Origin]]]:
    """Returns the origins of those of a feature file's examples that have these ids: (source, (id,
    Origin)).

    Where records are `positions` of the examples, the first of each has its origin.
    """
    payloads = feature_set.payloads(Span(file, 0, feature_set.manifest.files[file].count))
    owners = [
        (example_of(record) if positions else record).decode()
        for record in feature_record.example_ids(payloads)
    ]
    first = {owner: i for i, owner in reversed(list(enumerate(owners)))}
    rows = sorted(first[owner] for owner in ids & first.keys())
    for i, origin in zip(rows, feature_record.origins([payloads[i] for i in rows]), strict=True):
        yield origin.source, (owners[i], origin)


@dataclasses.dataclass
class SeeExamples(beam.PTransform):
    """Reads previews of the shown examples of a feature set: (FeatureSet (one), Trace) → (id,
    Preview).

    Attributes:
        trains: whether it is the training set.
        positions: whether records are positions of the shown examples.
    """

    trains: bool
    positions: bool = False

    def _list(self, _: None, feature_set: FeatureSet, traces: Sequence[Trace]) -> Iterator[int]:
        if traces and preview_format(feature_set.manifest):
            yield from range(len(feature_set.manifest.files))

    def _find(
        self, file: int, feature_set: FeatureSet, traces: Sequence[Trace]
    ) -> Iterator[tuple[str, tuple[str, Origin]]]:
        yield from find_origins(file, feature_set, shown_ids(traces)[self.trains], self.positions)

    def _read(
        self, grouped: tuple[str, Iterable[tuple[str, Origin]]], feature_set: FeatureSet
    ) -> Iterator[tuple[str, Preview]]:
        source, named = grouped
        ordered = sorted(named, key=lambda pair: pair[0])
        form = preview_format(feature_set.manifest)
        assert form  # otherwise no file was listed
        try:
            # Only here, where there is something to see: TensorFlow takes seconds to load.
            from transforms.reports.read_previews import read_previews
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            yield from ((example_id, Preview(problem=NO_TENSORFLOW)) for example_id, _ in ordered)
            return
        previews = dict(read_previews((source, [origin for _, origin in ordered]), form))
        for example_id, origin in ordered:
            yield example_id, previews[source, origin.offset]

    def expand(self, collections: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        sets, traces = collections
        feature_set, shown = beam.pvalue.AsSingleton(sets), beam.pvalue.AsList(traces)
        return (
            # Not from the set itself: a runner that fused this with what reads the set would wait
            # for the rows before it makes them.
            sets.pipeline
            | "StartSearch" >> beam.Create([None])
            | "ListSearched" >> beam.FlatMap(self._list, feature_set, shown)  # file
            | "SpreadSearched" >> beam.Reshuffle()  # file
            | "FindOrigins"
            >> beam.FlatMap(self._find, feature_set, shown)  # (source, (id, Origin))
            | "GroupBySource" >> beam.GroupByKey()  # (source, [(id, Origin)])
            | "ReadPreviews" >> beam.FlatMap(self._read, feature_set)  # (id, Preview)
        )
