"""What a person is shown of influence: the worst-predicted test examples, the strongest candidates
of each, and their pictures.

Rows of influence name examples by their ids. Where those of the few that are shown came from is
looked up in the feature sets, once the rows are known: carrying it with every candidate would make
all that travels several times larger.
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
from transforms.examples.format import ExampleFormat
from transforms.influence.blocks import ScoredBlock, SummedBlock
from transforms.reports.previews import Preview, read_previews
from transforms.storage import feature_record
from transforms.storage.feature_set import FeatureSet

# Test examples in the report, and candidates of each sign of each.
_SHOWN = 50
_CANDIDATES = 5


@dataclasses.dataclass(frozen=True)
class Trace:
    """A test example of the report.

    Attributes:
        row: its row of the result, with no more candidates than are shown.
        label_probability: what the last checkpoint gives its label; NaN for a regression.
    """

    row: dict[str, Any]
    label_probability: float

    @property
    def order(self) -> tuple[float, float, bytes]:
        """The worst predicted first: the least probability of the label, where there is none the
        largest self-influence; then by id.
        """
        known = not np.isnan(self.label_probability)
        return (
            self.label_probability if known else 0.0,
            -self.row["self_influence"],
            self.row["test_id"].encode(),
        )


def worst(traces: Iterable[Trace]) -> list[Trace]:
    """The test examples that are shown, in order."""
    return sorted(traces, key=lambda one: one.order)[:_SHOWN]


def of_rows(table: pa.Table, blocks: Sequence[ScoredBlock | SummedBlock]) -> list[Trace]:
    """The worst of a file's rows, given the blocks that they are of, in order."""
    probabilities = np.concatenate([one.label_probabilities for one in blocks]).astype(np.float64)
    influence = table["self_influence"].to_numpy()
    ordered = np.lexsort((-influence, np.where(np.isnan(probabilities), 0, probabilities)))
    # All that are as bad as the last that is shown, of which the ids decide.
    last = ordered[min(_SHOWN, len(ordered)) - 1]
    tied = (probabilities == probabilities[last]) | (
        np.isnan(probabilities) & np.isnan(probabilities[last])
    )
    chosen = np.union1d(ordered[:_SHOWN], np.flatnonzero(tied & (influence == influence[last])))
    found = []
    for i, row in zip(chosen.tolist(), table.take(pa.array(chosen)).to_pylist(), strict=True):
        cut = {name: row[name][:_CANDIDATES] for name in ("proponents", "opponents")}
        found.append(Trace({**row, **cut}, float(probabilities[i])))
    return worst(found)


def wanted_ids(traces: Sequence[Trace]) -> tuple[set[str], set[str]]:
    """The ids of the test examples and of the training examples that are shown."""
    candidates = {
        one["train_id"]
        for trace in traces
        for name in ("proponents", "opponents")
        for one in trace.row[name]
    }
    return {trace.row["test_id"] for trace in traces}, candidates


def find_origins(
    file: int, found: FeatureSet, wanted: set[str], positions: bool = False
) -> Iterator[tuple[str, tuple[str, Origin]]]:
    """Where those of a feature file's examples that are wanted came from: (source, (id, Origin)).

    Where records are `positions` of the examples, the first of each tells it.
    """
    payloads = found.payloads(Span(file, 0, found.manifest.files[file].count))
    ids = [
        (example_of(one) if positions else one).decode()
        for one in feature_record.example_ids(payloads)
    ]
    first = {one: i for i, one in reversed(list(enumerate(ids)))}
    rows = sorted(first[one] for one in wanted & first.keys())
    for i, origin in zip(rows, feature_record.origins([payloads[i] for i in rows]), strict=True):
        yield origin.source, (ids[i], origin)


@dataclasses.dataclass
class SeeExamples(beam.PTransform):
    """Reads what there is to see of the shown examples of a set: (FeatureSet (one), Trace) → (id,
    Preview).

    Attributes:
        trains: whether the set is the training set.
        form: how to read it, or None where there is nothing.
        positions: whether records are positions of the shown examples.
    """

    trains: bool
    form: ExampleFormat | None
    positions: bool = False

    def _list(self, _: None, found: FeatureSet, traces: Sequence[Trace]) -> Iterator[int]:
        if self.form and traces:
            yield from range(len(found.manifest.files))

    def _find(
        self, file: int, found: FeatureSet, traces: Sequence[Trace]
    ) -> Iterator[tuple[str, tuple[str, Origin]]]:
        yield from find_origins(file, found, wanted_ids(traces)[self.trains], self.positions)

    def _read(
        self, grouped: tuple[str, Iterable[tuple[str, Origin]]]
    ) -> Iterator[tuple[str, Preview]]:
        source, named = grouped
        known = sorted(named, key=lambda pair: pair[0])
        assert self.form  # nothing was listed else
        seen = dict(read_previews((source, [origin for _, origin in known]), self.form))
        for example_id, origin in known:
            yield example_id, seen[source, origin.offset]

    def expand(self, collections: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        sets, traces = collections
        found, shown = beam.pvalue.AsSingleton(sets), beam.pvalue.AsList(traces)
        return (
            # Not from the set itself: a runner that fused this with what reads the set would wait
            # for the rows before it makes them.
            sets.pipeline
            | "StartSearch" >> beam.Create([None])
            | "ListSearched" >> beam.FlatMap(self._list, found, shown)  # file
            | "SpreadSearched" >> beam.Reshuffle()  # file
            | "FindOrigins" >> beam.FlatMap(self._find, found, shown)  # (source, (id, Origin))
            | "GroupBySource" >> beam.GroupByKey()  # (source, [(id, Origin)])
            | "ReadPreviews" >> beam.FlatMap(self._read)  # (id, Preview)
        )
