"""An audit as files, committed by a manifest.

`examples-*.parquet`: a row for each example, in the feature set's order.

| field | content |
|---|---|
| `example_id`, `content_digest`, `label` | of the example; the digest in hexadecimal digits |
| `prediction`, `probability` | of the last checkpoint |
| `label_probability` | of the label, the mean over the checkpoints |
| `self_influence` | the influence of the example on itself |
| `suspicion` | how likely the label is wrong; what the audit ranks by |
| `suggested_label`, `suggested_probability` | the likeliest class, and how likely it is |

`suspects.parquet` and `suspects.jsonl`: the rows with enough suspicion, the most suspicious first, and `relative_self_influence`, the
self-influence over the mean of the label's examples. `summary.json`: counts, and a table of the classes.
`changes-*.parquet`: with a previous audit, the examples and suspects that changed since.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import counting, drift, files, manifest
from transforms.audits import AuditedExamples
from transforms.drift import Changes, CompareAudits
from transforms.files import StoredFile
from transforms.manifest import Manifest
from transforms.sinks import to_jsonl
from transforms.suspicion import Judgement

# Feature files whose examples are rows of one file: at most 131,072 rows.
_FILES_PER_FILE = 16
_TOLD_CONFUSIONS = 20


@dataclasses.dataclass(frozen=True)
class SuspectsWanted:
    """Which examples are suspects.

    Attributes:
        min_suspicion: the least suspicion of one.
        max_per_class: how many of one label are listed.
    """

    min_suspicion: float
    max_per_class: int


def to_table(block: AuditedExamples, judged: Judgement) -> pa.Table:
    """The rows of a feature file."""
    return pa.table(
        {
            "example_id": pa.array(block.example_ids.tolist(), pa.binary()).cast(pa.string()),
            "content_digest": pa.array([digest.hex() for digest in block.content_digests], pa.string()),
            "label": pa.array(block.labels),
            "prediction": pa.array(block.predictions),
            "probability": pa.array(block.probabilities.astype(np.float64)),
            "label_probability": pa.array(block.label_probabilities),
            "self_influence": pa.array(block.self_influence),
            "suspicion": pa.array(judged.suspicion),
            "suggested_label": pa.array(judged.suggested_labels),
            "suggested_probability": pa.array(judged.suggested_probabilities),
        }
    )


def worst_first(table: pa.Table) -> pa.Table:
    """Rows by suspicion, the largest first; equal ones by id."""
    return table.sort_by([("suspicion", "descending"), ("example_id", "ascending")])


def suspects(table: pa.Table, wanted: SuspectsWanted) -> pa.Table:
    """The suspects among rows, the worst first, and of each label no more than wanted."""
    ordered = worst_first(table.filter(pa.array(table["suspicion"].to_numpy() >= wanted.min_suspicion)))
    labels = ordered["label"].to_numpy()
    # The place of each row among those of its label.
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    places = np.empty(len(labels), np.int64)
    places[by_label] = np.arange(len(labels)) - np.repeat(starts, counts)
    return ordered.filter(pa.array(places < wanted.max_per_class))


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSums:
    """What is summed of the examples of each label.

    Attributes:
        examples, correct, suspects: [K] int64: all, those that the last checkpoint predicts as labelled, and the suspects.
        expected_wrong, self_influence: [K] float64, the sums of suspicion and of self-influence.
        suggested: [K, 3] of int64 rows (label, suggested label, suspects).
    """

    examples: np.ndarray
    correct: np.ndarray
    suspects: np.ndarray
    expected_wrong: np.ndarray
    self_influence: np.ndarray
    suggested: np.ndarray

    @staticmethod
    def of(table: pa.Table, classes: int, wanted: SuspectsWanted) -> ClassSums:
        """The sums of some rows."""
        label, prediction, suggested, suspicion, influence = (
            table[name].to_numpy() for name in ("label", "prediction", "suggested_label", "suspicion", "self_influence")
        )
        suspected = suspicion >= wanted.min_suspicion
        return ClassSums(
            np.bincount(label, minlength=classes),
            np.bincount(label[prediction == label], minlength=classes),
            np.bincount(label[suspected], minlength=classes),
            np.bincount(label, suspicion, classes),
            np.bincount(label, influence, classes),
            _count_pairs(np.stack([label[suspected], suggested[suspected], np.ones(suspected.sum(), np.int64)], axis=1)),
        )

    @staticmethod
    def add(parts: Sequence[ClassSums]) -> ClassSums:
        """Adds sums up, in the given order."""
        first, *others = parts
        for part in others:
            first = ClassSums(
                first.examples + part.examples,
                first.correct + part.correct,
                first.suspects + part.suspects,
                first.expected_wrong + part.expected_wrong,
                first.self_influence + part.self_influence,
                _count_pairs(np.concatenate([first.suggested, part.suggested])),
            )
        return first


def _count_pairs(rows: np.ndarray) -> np.ndarray:
    """Rows (label, suggested label, count) [m, 3], with those of equal labels added up."""
    pairs, places = np.unique(rows[:, :2], axis=0, return_inverse=True)
    counts = np.zeros(len(pairs), np.int64)
    np.add.at(counts, places.reshape(-1), rows[:, 2])
    return np.concatenate([pairs, counts[:, None]], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class WrittenExamples:
    """A file of rows, and what the summary needs of it."""

    shard: int
    file: StoredFile
    sums: ClassSums
    suspects: pa.Table


def summarize(sums: ClassSums, listed: int, wanted: SuspectsWanted, settings: dict[str, Any]) -> dict[str, Any]:
    """What `summary.json` holds."""
    total = float(sums.self_influence.sum())
    by_count = sorted(sums.suggested.tolist(), key=lambda row: (-row[2], row[0], row[1]))
    table = []
    for k in np.flatnonzero(sums.examples).tolist():
        examples = int(sums.examples[k])
        table.append(
            {
                "label": k,
                "examples": examples,
                "accuracy": int(sums.correct[k]) / examples,
                "suspects": int(sums.suspects[k]),
                "expected_wrong_labels": float(sums.expected_wrong[k]),
                "mean_self_influence": float(sums.self_influence[k]) / examples,
                "self_influence_share": float(sums.self_influence[k]) / total if total else 0.0,
                "suggested": [{"label": other, "suspects": count} for label, other, count in by_count if label == k],
            }
        )
    return {
        "examples": int(sums.examples.sum()),
        "accuracy": int(sums.correct.sum()) / int(sums.examples.sum()),
        "suspects": int(sums.suspects.sum()),
        "listed_suspects": listed,
        "min_suspicion": wanted.min_suspicion,
        "expected_wrong_labels": float(sums.expected_wrong.sum()),
        "confusions": [
            {"label": label, "suggested_label": other, "suspects": count} for label, other, count in by_count[:_TOLD_CONFUSIONS]
        ],
        "classes": table,
        "settings": settings,
    }


@dataclasses.dataclass
class WriteAudit(beam.PTransform):
    """Writes judged examples, suspects, summary and changes, and commits them: (AuditedExamples, Judgement) → Manifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
        classes: K.
        wanted: which examples are suspects.
        overwrite: whether a complete result is replaced.
        previous: the audit to compare with, its directory and its manifest, or None.
    """

    directory: str
    draft: Manifest
    classes: int
    wanted: SuspectsWanted
    overwrite: bool
    previous: tuple[str, Manifest] | None = None

    def _take_back(self, _: None) -> None:
        # As for influence: names are fixed, so the old manifest goes before the files do, and not before the graph runs.
        manifest.is_complete(self.directory, self.draft.kind, self.draft.fingerprint, self.draft.settings, self.overwrite)
        if self.overwrite:
            manifest.take_back(self.directory)

    def _write(self, grouped: tuple[int, Iterable[tuple[AuditedExamples, Judgement]]], _: list[None]) -> WrittenExamples:
        shard, blocks = grouped
        ordered = sorted(blocks, key=lambda pair: pair[0].file)
        table = pa.concat_tables([to_table(*pair) for pair in ordered]).combine_chunks()
        counting.add("rows-written", table.num_rows)
        return WrittenExamples(
            shard,
            _write_parquet(self.directory, f"examples-{shard:05d}.parquet", table),
            ClassSums.of(table, self.classes, self.wanted),
            suspects(table, self.wanted),
        )

    def _write_changes(self, changes: Changes, _: list[None]) -> tuple[Changes, StoredFile]:
        written = _write_parquet(self.directory, f"changes-{changes.bucket:05d}.parquet", changes.rows)
        # The rows are in the file now.
        return dataclasses.replace(changes, rows=changes.rows.slice(0, 0)), written

    def _commit(self, _: None, parts: Sequence[WrittenExamples], changes: Sequence[tuple[Changes, StoredFile]]) -> Manifest:
        ordered = sorted(parts, key=lambda part: part.shard)
        sums = ClassSums.add([part.sums for part in ordered])
        listed = suspects(pa.concat_tables([part.suspects for part in ordered]), self.wanted).combine_chunks()
        labels = listed["label"].to_numpy()
        means = sums.self_influence / np.maximum(sums.examples, 1)
        relative = np.divide(listed["self_influence"].to_numpy(), means[labels], out=np.ones(len(labels)), where=means[labels] > 0)
        listed = listed.append_column("relative_self_influence", pa.array(relative))
        summary = summarize(sums, listed.num_rows, self.wanted, dict(self.draft.settings))
        compared = sorted(changes, key=lambda pair: pair[0].bucket)
        if self.previous:
            directory, previous = self.previous
            known = {"directory": directory, "fingerprint": previous.fingerprint, **previous.counts}
            summary["drift"] = drift.summarize([part for part, _ in compared], known)
        written = (
            *(part.file for part in ordered),
            *(file for _, file in compared),
            _write_parquet(self.directory, "suspects.parquet", listed),
            files.write(self.directory, "suspects.jsonl", to_jsonl(listed), listed.num_rows),
            files.write(self.directory, "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n", 1),
        )
        counts = {"examples": summary["examples"], "suspects": summary["suspects"]}
        return manifest.commit(self.directory, dataclasses.replace(self.draft, files=written, counts=counts), overwrite=False)

    def expand(self, judged: beam.PCollection) -> beam.PCollection:
        ready = judged.pipeline | "StartWriting" >> beam.Create([None]) | "TakeBackOldAudit" >> beam.Map(self._take_back)  # None
        written = (
            judged
            | "KeyByFile" >> beam.Map(lambda pair: (pair[0].file // _FILES_PER_FILE, pair))  # (shard, (AuditedExamples, Judgement))
            | "GroupByFile" >> beam.GroupByKey()  # (shard, [(AuditedExamples, Judgement)])
            | "WriteExamples" >> beam.Map(self._write, beam.pvalue.AsList(ready))  # WrittenExamples
        )
        if self.previous:
            changes = (
                judged
                | "MakeRows" >> beam.MapTuple(to_table)  # pa.Table
                | "CompareAudits" >> CompareAudits(*self.previous, self.wanted.min_suspicion)  # Changes
                | "WriteChanges" >> beam.Map(self._write_changes, beam.pvalue.AsList(ready))  # (Changes, StoredFile)
            )
        else:
            changes = judged.pipeline | "CompareNothing" >> beam.Create([])
        return (
            judged.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitAudit" >> beam.Map(self._commit, beam.pvalue.AsList(written), beam.pvalue.AsList(changes))  # Manifest
        )


def _write_parquet(directory: str, name: str, table: pa.Table) -> StoredFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return files.write(directory, name, buffer.getvalue(), table.num_rows)


def read_summary(directory: str, committed: Manifest) -> dict[str, Any]:
    """The summary of a committed audit."""
    (file,) = (file for file in committed.files if file.name == "summary.json")
    summary: dict[str, Any] = orjson.loads(files.read_verified(directory, file))
    return summary
