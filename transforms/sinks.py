"""Influence as files: rows in the test set's order, as JSON lines and as Parquet, committed by a manifest.

| field | content |
|---|---|
| `test_id`, `test_label`, `test_prediction`, `test_probability` | the test example; the probability is null for a regression |
| `self_influence` | the influence of the test example on itself |
| `proponents`, `opponents` | lists of `{train_id, train_label, score}`, strongest first |

Where scores are summed over the positions of examples, an example has as many labels as positions. Its row tells numbers instead:
`test_positions`, `test_wrong_positions` and `test_label_probability`, and `train_positions` of its candidates.

`report.html`: for a person, the worst-predicted test examples beside their candidates.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import counting, files, influence_page, manifest, traces
from transforms.examples import ExampleFormat
from transforms.files import StoredFile
from transforms.gradients import UNKNOWN
from transforms.manifest import FeatureManifest, Manifest
from transforms.previews import Preview, preview_format, why_no_pictures
from transforms.records import NO_LABEL
from transforms.scores import ScoredBlock
from transforms.summed_scores import SummedBlock
from transforms.topk import Ranking
from transforms.traces import SeeExamples, Trace


def label_type(task: str, outputs: int) -> pa.DataType:
    """The Parquet type of labels and predictions: an integer, a number, or a list of them."""
    if task in ("class", "binary"):
        return pa.int64()
    if task == "multilabel":
        return pa.list_(pa.int64())
    return pa.float64() if outputs == 1 else pa.list_(pa.float64())


def schema(task: str, outputs: int, sum_positions: bool = False) -> pa.Schema:
    """The Parquet schema of influence rows; where positions are summed, it is the same for all tasks."""
    if sum_positions:
        summed = pa.list_(pa.struct([("train_id", pa.string()), ("train_positions", pa.int64()), ("score", pa.float64())]))
        return pa.schema(
            [
                ("test_id", pa.string()),
                ("test_positions", pa.int64()),
                ("test_wrong_positions", pa.int64()),
                ("test_label_probability", pa.float64()),
                ("self_influence", pa.float64()),
                ("proponents", summed),
                ("opponents", summed),
            ]
        )
    label = label_type(task, outputs)
    candidates = pa.list_(pa.struct([("train_id", pa.string()), ("train_label", label), ("score", pa.float64())]))
    return pa.schema(
        [
            ("test_id", pa.string()),
            ("test_label", label),
            ("test_prediction", label),
            ("test_probability", pa.float64()),
            ("self_influence", pa.float64()),
            ("proponents", candidates),
            ("opponents", candidates),
        ]
    )


def to_table(block: ScoredBlock | SummedBlock, rows: pa.Schema) -> pa.Table:
    """The rows of a block as a table."""
    n = len(block.test_ids)
    told: list[pa.Array]
    if isinstance(block, SummedBlock):
        probabilities = block.label_probabilities
        told = [pa.array(block.positions), pa.array(block.wrong, mask=block.wrong == UNKNOWN)]
    else:
        label = rows.field("test_label").type
        probabilities = block.probabilities.astype(np.float64)
        told = [label_array(block.labels, label), label_array(block.predictions, label)]
    return pa.table(
        [
            string_array(block.test_ids),
            *told,
            pa.array(probabilities, mask=np.isnan(probabilities)),
            pa.array(block.self_influence),
            _candidates(block.best.proponents, n, rows.field("proponents").type),
            _candidates(block.best.opponents, n, rows.field("opponents").type),
        ],
        schema=rows,
    )


def string_array(ids: np.ndarray) -> pa.Array:
    """Ids [n] of dtype S as strings."""
    return pa.array(ids.tolist(), pa.binary()).cast(pa.string())


def label_array(labels: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Labels [n, L] as values of a `label_type`."""
    if not pa.types.is_list(kind):
        return pa.array(labels[:, 0]).cast(kind)
    if labels.dtype.kind == "f":
        offsets = np.arange(0, labels.size + 1, max(1, labels.shape[1]), dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(labels.reshape(-1)), type=kind)
    present = labels != NO_LABEL
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(labels[present]), type=kind)


def _candidates(ranking: Ranking, n: int, kind: pa.DataType) -> pa.Array:
    fields = [kind.value_type.field(i) for i in range(kind.value_type.num_fields)]
    # The second is the label, or what stands for it.
    arrays = [string_array(ranking.ids), label_array(ranking.labels, fields[1].type), pa.array(ranking.scores)]
    return pa.ListArray.from_arrays(ranking.offsets(n).astype(np.int32), pa.StructArray.from_arrays(arrays, fields=fields), type=kind)


def to_jsonl(table: pa.Table) -> bytes:
    """A table as lines of JSON, with the shortest digits that give the same float64 back."""
    return b"".join(orjson.dumps(row) + b"\n" for batch in table.to_batches(max_chunksize=500) for row in batch.to_pylist())


@dataclasses.dataclass(frozen=True)
class WrittenRows:
    """The two files of the same rows, their place among the others, and the worst-predicted of them."""

    shard: int
    jsonl: StoredFile
    parquet: StoredFile
    worst: list[Trace]


def write_rows(directory: str, shard: int, blocks: Iterable[tuple[int, ScoredBlock | SummedBlock]], rows: pa.Schema) -> WrittenRows:
    """Writes the rows of one output file, given the blocks that it consists of, each with its first row's number."""
    ordered = [block for _, block in sorted(blocks, key=lambda pair: pair[0])]
    table = pa.concat_tables([to_table(block, rows) for block in ordered]).combine_chunks()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=table.num_rows)
    counting.add("rows-written", table.num_rows)
    return WrittenRows(
        shard,
        files.write(directory, f"influence-{shard:05d}.jsonl", to_jsonl(table), table.num_rows),
        files.write(directory, f"influence-{shard:05d}.parquet", buffer.getvalue(), table.num_rows),
        traces.of_rows(table, ordered),
    )


@dataclasses.dataclass(frozen=True)
class ReportWanted:
    """How the report is made.

    Attributes:
        tests, trains: how what is to see of the examples of each set is read, or None where there is nothing.
        class_names: of all classes, or None.
        notes: what is to be told of the result, such as why there are no pictures.
    """

    tests: ExampleFormat | None = None
    trains: ExampleFormat | None = None
    class_names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(test: FeatureManifest, train: FeatureManifest, class_names: Sequence[str] | None, sum_positions: bool = False) -> ReportWanted:
        """For two sets."""
        notes = [f"{name} set: {note}" for name, one in (("Test", test), ("Training", train)) if (note := why_no_pictures(one))]
        if test.settings.get("labels") == "predicted":
            notes.append("Labels of the test examples are the model's own predictions: the first are those that it is least certain of.")
        if sum_positions:
            notes.append("Scores are sums over all pairs of positions of two examples; the probability of labels is a mean over positions.")
        return ReportWanted(preview_format(test), preview_format(train), class_names, tuple(notes))


@dataclasses.dataclass
class WriteInfluence(beam.PTransform):
    """Writes scored blocks as rows, and a report, and commits them with a manifest: ((row number, ScoredBlock), test FeatureSet (one),
    training FeatureSet (one)) → Manifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
        task, outputs: decide the type of labels; see `schema`.
        rows: rows of a file; blocks do not cross its border.
        overwrite: whether a complete result is replaced.
        report: how the report is made.
        beside: small files to be committed with the rows, (name, content); or None.
        sum_positions: whether blocks are SummedBlocks, of examples whose records are positions.
    """

    directory: str
    draft: Manifest
    task: str
    outputs: int
    rows: int
    overwrite: bool
    report: ReportWanted
    beside: beam.PCollection | None = None
    sum_positions: bool = False

    def _write(self, grouped: tuple[int, Iterable[tuple[int, ScoredBlock | SummedBlock]]], _: list[None]) -> WrittenRows:
        return write_rows(self.directory, *grouped, schema(self.task, self.outputs, self.sum_positions))

    def _choose(self, _: None, parts: Sequence[WrittenRows]) -> Iterator[Trace]:
        yield from traces.worst(one for part in parts for one in part.worst)

    def _commit(
        self,
        _: None,
        parts: Sequence[WrittenRows],
        shown: Sequence[Trace],
        tests: Sequence[tuple[str, Preview]],
        trains: Sequence[tuple[str, Preview]],
        beside: Sequence[tuple[str, bytes]] = (),
    ) -> Manifest:
        ordered = sorted(parts, key=lambda part: part.shard)
        count = sum(part.jsonl.count for part in ordered)
        wanted = self.report
        page = influence_page.render(
            traces.worst(shown), count, self.draft.settings, (dict(tests), dict(trains)), wanted.class_names, wanted.notes
        )
        rows = (file for part in ordered for file in (part.jsonl, part.parquet))
        more = [files.write(self.directory, name, content, 0) for name, content in sorted(beside)]
        committed = dataclasses.replace(
            self.draft, files=(*rows, files.write(self.directory, "report.html", page, 1), *more), counts={"rows": count}
        )
        return manifest.commit(self.directory, committed, overwrite=False)

    def expand(self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]) -> beam.PCollection:
        blocks, test, train = collections
        ready = (
            blocks.pipeline
            | "StartWriting" >> beam.Create([None])
            | "TakeBackOldResult" >> beam.Map(lambda _: manifest.take_back_old(self.directory, self.draft, self.overwrite))  # None
        )
        written = (
            blocks
            | "KeyByFile"
            >> beam.MapTuple(lambda start, block, rows=self.rows: (start // rows, (start, block)))  # (shard, (row, ScoredBlock))
            | "GroupByFile" >> beam.GroupByKey()  # (shard, [(row, ScoredBlock)])
            | "WriteRows" >> beam.Map(self._write, beam.pvalue.AsList(ready))  # WrittenRows
        )
        shown = (
            blocks.pipeline
            | "StartReport" >> beam.Create([None])
            | "ChooseShown" >> beam.FlatMap(self._choose, beam.pvalue.AsList(written))  # Trace
        )
        seen = [
            (sets, shown) | f"See{name}Examples" >> SeeExamples(trains, form, self.sum_positions)  # (id, Preview)
            for name, sets, trains, form in (("Test", test, False, self.report.tests), ("Train", train, True, self.report.trains))
        ]
        gathered = [written, shown, *seen, *([] if self.beside is None else [self.beside])]
        return (
            blocks.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitInfluence" >> beam.Map(self._commit, *map(beam.pvalue.AsList, gathered))  # Manifest
        )


def read_rows(directory: str) -> list[dict[str, Any]]:
    """The rows of a committed directory, in order."""
    found = manifest.read(directory, Manifest, "output")
    return [
        orjson.loads(line)
        for file in found.files
        if file.name.endswith(".jsonl")
        for line in files.read_verified(directory, file).splitlines()
    ]
