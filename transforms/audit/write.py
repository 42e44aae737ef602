"""An audit as files, committed by a manifest.

`examples-*.parquet`: a row for each example, in the feature set's order.

| field | content |
|---|---|
| `example_id`, `content_digest`, `label` | of the example; the digest in hexadecimal digits |
| `source`, `offset` | the file that it came from, and its place there |
| `prediction`, `probability` | of the last checkpoint |
| `label_probability` | of the label, the mean over the checkpoints |
| `self_influence` | the influence of the example on itself |
| `suspicion` | how likely the label is wrong; what the audit ranks by |
| `suggested_label`, `suggested_probability` | the likeliest class, and how likely it is |
| `test_influence` | with a test set: the mean influence on its examples; above 0 the example helps |
| `test_influence_by_label` | likewise, on those of each label, null where there is none; unless that would be too large |
| `test_influence_by_slice` | likewise, on those of each slice that the summary lists |

`suspects.parquet` and `suspects.jsonl`: the rows with enough suspicion, the most suspicious first,
and `relative_self_influence`, the self-influence over the mean of the label's examples.
`summary.json`: counts, and a table of the classes. `suspects.csv`: what to do about each of them,
for a spreadsheet. `duplicates.parquet` and `duplicates.jsonl`: the members of groups of duplicates:
`group`, `conflicting`, `similarity`, and of the row above `example_id`, `label`, `suggested_label`,
`suspicion`, `source`, `offset`, `content_digest`. `report.html`: the same for a person, with what
there is to see of the suspects. `changes-*.parquet`: with a previous audit, the examples and
suspects that changed since.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.audit import drift, pending, report_page
from transforms.audit.drift import Changes, CompareAudits, Distributions, Thresholds
from transforms.audit.pending import AuditedExamples, Weighed
from transforms.audit.slices import Slices
from transforms.audit.suspicion import Judgement, Noise, judge
from transforms.core.errors import InputError
from transforms.core.origins import Origin, Origins
from transforms.duplicates.find import Duplicates
from transforms.duplicates.neighbours import Asked, FindNeighbours
from transforms.examples.format import ExampleFormat
from transforms.reports.previews import Preview, read_previews
from transforms.runtime import counters
from transforms.storage import filesystems, manifests
from transforms.storage.bigquery import Computed, TableRows, WriteTable
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.spreadsheets import to_csv
from transforms.storage.tabular import to_jsonl

# Feature files whose examples are rows of one file: at most 131,072 rows.
_FILES_PER_FILE = 16
_TOLD_CONFUSIONS = 20
# Suspects in the report, and how many of them are the worst whatever their label.
_SHOWN = 200
_SHOWN_WORST = 100
_SUSPICION_BINS = 20
_EXTREMES = 50
# Neighbours of each suspect in the report.
_NEIGHBOURS = 3
_ACTION_COLUMNS = (
    "example_id",
    "action",
    "suggested_label",
    "label",
    "suspicion",
    "suggested_probability",
    "source",
    "offset",
)
# A suggested label that is likelier than this is worth taking.
_SURE = 0.5
# Slices by keys of which is told who helps and hurts them most, and how many of each.
_SHOWN_SLICES = 50
_SLICE_EXTREMES = 5
# Duplicates that are listed, and groups of them in the report, with so many members.
_LISTED_DUPLICATES = 100_000
_SHOWN_GROUPS = 50
_SHOWN_MEMBERS = 6
_MEMBER_COLUMNS = (
    "place",
    "example_id",
    "label",
    "suggested_label",
    "suspicion",
    "source",
    "offset",
    "content_digest",
)


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
    """The rows of a feature file, and the `place` of each as in `similarity.Signatures`, which is
    not written.
    """
    origins = block.origins
    columns = pa.table(
        {
            "example_id": pa.array(block.example_ids.tolist(), pa.binary()).cast(pa.string()),
            "content_digest": pa.array(
                [one.tobytes().hex() for one in origins.digests], pa.string()
            ),
            "source": pa.DictionaryArray.from_arrays(
                origins.source, pa.array(origins.sources, pa.string())
            ).cast(pa.string()),
            "offset": pa.array(origins.offsets),
            "label": pa.array(block.labels),
            "prediction": pa.array(block.predictions),
            "probability": pa.array(block.probabilities.astype(np.float64)),
            "label_probability": pa.array(block.label_probabilities),
            "self_influence": pa.array(block.self_influence),
            "suspicion": pa.array(judged.suspicion),
            "suggested_label": pa.array(judged.suggested_labels),
            "suggested_probability": pa.array(judged.suggested_probabilities),
            "place": pa.array((block.file << 32) + np.arange(len(block.labels))),
        }
    )
    if block.test_influence is None or block.test_slices is None:
        return columns
    labels, counts = block.test_slices.labels, block.test_slices.counts
    by_label, by_value = block.test_influence[:, :labels], block.test_influence[:, labels:]
    mean = np.nansum(by_label * counts[:labels], axis=1) / counts[:labels].sum()
    columns = columns.append_column("test_influence", pa.array(mean))
    for name, numbers, wanted in (
        ("label", by_label, labels > 1),
        ("slice", by_value, by_value.shape[1] > 0),
    ):
        if wanted:
            columns = columns.append_column(f"test_influence_by_{name}", _lists(numbers))
    return columns


def table_rows(wanted: SuspectsWanted, test: bool) -> TableRows:
    """What of an audit is rows of a table: each example, and whether it is a suspect; `test` says
    whether there is a test set.
    """
    none, numbers = np.empty(0), np.empty(0, np.int64)
    origins = Origins((), np.empty(0, np.int32), numbers, np.empty((0, 16), np.uint8))
    influence = (np.empty((0, 1)), Slices(1, (), np.ones(1, np.int64))) if test else (None, None)
    examples = AuditedExamples(
        0, np.empty(0, "S1"), origins, numbers, numbers, none, none, none, *influence
    )
    suspect = Computed("suspect", pa.bool_(), f"`suspicion` >= {wanted.min_suspicion!r}")
    # Influence by label and by slice is left out: it is null where there is no such test example,
    # and a list of BigQuery's holds no null.
    written = to_table(examples, Judgement(none, numbers, none)).drop_columns("place")
    return TableRows("examples-", written.schema, (suspect,))


def _lists(numbers: np.ndarray) -> pa.Array:
    """Rows [n, m] as lists, with null for NaN."""
    flat = numbers.reshape(-1)
    offsets = np.arange(0, flat.size + 1, numbers.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, mask=np.isnan(flat)))


def extremes(table: pa.Table) -> pa.Table:
    """The rows with the lowest and the highest influence on the test set, from the lowest on; no
    row without a test set.
    """
    if "test_influence" not in table.column_names:
        return table.schema.empty_table()
    ordered = table.sort_by([("test_influence", "ascending"), ("example_id", "ascending")])
    if ordered.num_rows <= 2 * _EXTREMES:
        return ordered
    return pa.concat_tables(
        [ordered.slice(0, _EXTREMES), ordered.slice(ordered.num_rows - _EXTREMES)]
    )


def slice_extremes(table: pa.Table, found: Slices | None) -> pa.Table:
    """The rows with the lowest and the highest influence on each of the largest slices: `slice`,
    `influence`, `example_id`, `label`.
    """
    parts = []
    if found and "test_influence_by_slice" in table.column_names:
        values = _values_by_slice(table)
        for one in _largest(found).tolist():
            named = {name: table[name] for name in ("example_id", "label")}
            own = pa.table(
                {"slice": np.full(len(values), one), "influence": values[:, one], **named}
            )
            parts.append(_ends(own))
    return pa.concat_tables([_NO_SLICES, *parts])


_NO_SLICES = pa.schema(
    [
        ("slice", pa.int64()),
        ("influence", pa.float64()),
        ("example_id", pa.string()),
        ("label", pa.int64()),
    ]
).empty_table()


def _values_by_slice(table: pa.Table) -> np.ndarray:
    """[n, S] float64."""
    flat = (
        table["test_influence_by_slice"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    )
    return flat.reshape(table.num_rows, -1)


def _largest(found: Slices) -> np.ndarray:
    """The numbers of the slices with the most test examples, labels apart."""
    counts = found.counts[found.labels :]
    return np.sort(np.argsort(-counts, kind="stable")[:_SHOWN_SLICES])


def _ends(own: pa.Table) -> pa.Table:
    """The first and the last rows of one slice, by influence."""
    ordered = own.sort_by([("influence", "ascending"), ("example_id", "ascending")])
    if ordered.num_rows <= 2 * _SLICE_EXTREMES:
        return ordered
    return pa.concat_tables(
        [ordered.slice(0, _SLICE_EXTREMES), ordered.slice(ordered.num_rows - _SLICE_EXTREMES)]
    )


def summarize_slices(found: Slices, means: np.ndarray, most: pa.Table) -> list[dict[str, Any]]:
    """What `summary.json` tells of the slices by keys, in the order of the rows; of the largest,
    who helps and hurts most.
    """
    told = []
    largest = set(_largest(found).tolist())
    for i, (key, value) in enumerate(found.named):
        row: dict[str, Any] = {
            "key": key,
            "value": value,
            "examples": int(found.counts[found.labels + i]),
            "mean_influence": float(means[i]),
        }
        if i in largest:
            ends = (
                _ends(most.filter(pa.array(most["slice"].to_numpy() == i)))
                .drop_columns(["slice"])
                .to_pylist()
            )
            row["helpful"] = [one for one in ends[::-1][:_SLICE_EXTREMES] if one["influence"] > 0]
            row["harmful"] = [one for one in ends[:_SLICE_EXTREMES] if one["influence"] < 0]
        told.append(row)
    return told


def summarize_test(table: pa.Table, sums: ClassSums) -> dict[str, Any]:
    """What `summary.json` tells of influence on the test set, given the extremes of all
    examples.
    """
    columns = ("example_id", "label", "suggested_label", "suspicion", "test_influence")
    ordered = extremes(table).select(columns).to_pylist()
    told: dict[str, Any] = {
        "helpful": [row for row in ordered[::-1][:_EXTREMES] if row["test_influence"] > 0],
        "harmful": [row for row in ordered[:_EXTREMES] if row["test_influence"] < 0],
    }
    if sums.between is not None:
        means = sums.between / np.maximum(sums.examples, 1)[:, None]
        told["between_labels"] = [
            {"label": k, "on": [None if np.isnan(one) else one for one in means[k].tolist()]}
            for k in np.flatnonzero(sums.examples).tolist()
        ]
    return told


def worst_first(table: pa.Table) -> pa.Table:
    """Rows by suspicion, the largest first; equal ones by id."""
    return table.sort_by([("suspicion", "descending"), ("example_id", "ascending")])


def suspects(table: pa.Table, wanted: SuspectsWanted) -> pa.Table:
    """The suspects among rows, the worst first, and of each label no more than wanted."""
    ordered = worst_first(
        table.filter(pa.array(table["suspicion"].to_numpy() >= wanted.min_suspicion))
    )
    return ordered.filter(pa.array(_places(ordered["label"].to_numpy()) < wanted.max_per_class))


def actions(listed: pa.Table) -> Iterator[dict[str, Any]]:
    """Suspects with what to do about each: `relabel` where one other class is likelier than all the
    rest, else `drop`.
    """
    for row in listed.to_pylist():
        sure = row["suggested_label"] != row["label"] and row["suggested_probability"] > _SURE
        yield {
            **row,
            "action": "relabel" if sure else "drop",
            "suggested_label": row["suggested_label"] if sure else None,
        }


def _places(labels: np.ndarray) -> np.ndarray:
    """The place of each row among those of its label."""
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    places = np.empty(len(labels), np.int64)
    places[by_label] = np.arange(len(labels)) - np.repeat(starts, counts)
    return places


def shown(listed: pa.Table) -> pa.Table:
    """The suspects that a person is shown: the worst, then the worst of each label, in the order of
    the list.
    """
    places = _places(listed["label"].to_numpy())
    places[:_SHOWN_WORST] = -1
    chosen = np.lexsort((np.arange(len(places)), places))[:_SHOWN]
    return listed.take(pa.array(np.sort(chosen)))


def listed_groups(found: Duplicates) -> pa.Table:
    """Place, group and similarity of the duplicates that are listed: whole groups, those with
    conflicting labels first.
    """
    groups = found.groups
    last = None
    if len(groups.places) > _LISTED_DUPLICATES:
        # Of a group that is larger by itself, as many as are listed.
        last = (
            int(np.searchsorted(groups.numbers, groups.numbers[_LISTED_DUPLICATES]))
            or _LISTED_DUPLICATES
        )
    columns = {
        "place": groups.places,
        "group": groups.numbers,
        "conflicting": groups.conflicting,
        "similarity": groups.similarities,
    }
    return pa.table({name: column[:last] for name, column in columns.items()})


def members(table: pa.Table, found: Duplicates) -> pa.Table:
    """The rows of those examples that are listed as duplicates."""
    listed = listed_groups(found).sort_by("place")
    places = table["place"].to_numpy()
    wanted = np.isin(places, listed["place"].to_numpy())
    rows = table.select(_MEMBER_COLUMNS).filter(pa.array(wanted))
    own = listed.take(pa.array(np.searchsorted(listed["place"].to_numpy(), places[wanted])))
    named = {name: own[name] for name in ("group", "conflicting", "similarity")}
    return pa.table({**named, **dict(zip(rows.column_names, rows.columns, strict=True))})


_NO_MEMBERS = pa.schema(
    [
        ("group", pa.int64()),
        ("conflicting", pa.bool_()),
        ("similarity", pa.float64()),
        ("place", pa.int64()),
        ("example_id", pa.string()),
        ("label", pa.int64()),
        ("suggested_label", pa.int64()),
        ("suspicion", pa.float64()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("content_digest", pa.string()),
    ]
).empty_table()


def joined_members(parts: Sequence[pa.Table]) -> pa.Table:
    """The rows of all listed duplicates, group by group."""
    return (
        pa.concat_tables([_NO_MEMBERS, *parts])
        .sort_by([("group", "ascending"), ("place", "ascending")])
        .drop_columns(["place"])
    )


def shown_groups(listed: pa.Table) -> list[list[dict[str, Any]]]:
    """The members of the groups that a person is shown: of the first with conflicting labels, as
    many labels as there is room for.
    """
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in listed.filter(listed["conflicting"]).to_pylist():
        if row["group"] in groups or len(groups) < _SHOWN_GROUPS:
            groups.setdefault(row["group"], []).append(row)
    told = []
    for rows in groups.values():
        places = _places(np.array([row["label"] for row in rows]))
        told.append(
            [
                rows[i]
                for i in sorted(
                    np.lexsort((np.arange(len(rows)), places))[:_SHOWN_MEMBERS].tolist()
                )
            ]
        )
    return told


def summarize_duplicates(found: Duplicates, listed: int, least: float) -> dict[str, Any]:
    """What `summary.json` tells of duplicates."""
    groups = found.groups
    return {
        "min_similarity": least,
        "groups": len(np.unique(groups.numbers)),
        "examples": len(groups.places),
        "conflicting_groups": len(np.unique(groups.numbers[groups.conflicting])),
        "conflicting_examples": int(groups.conflicting.sum()),
        "listed_examples": listed,
        "pairs_left_out": found.left_out,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSums:
    """What is summed of the examples of each label.

    Attributes:
        examples, correct, suspects: [K] int64: all, those that the last checkpoint predicts as
            labelled, and the suspects.
        expected_wrong, self_influence: [K] float64, the sums of suspicion and of self-influence.
        suggested: [K, 3] of int64 rows (label, suggested label, suspects).
        suspicions: [20] int64, examples by suspicion.
        influences: examples by self-influence.
        between: [K, K] float64, the sums of the mean influence on the test examples of each label,
            NaN where there are none; or None.
    """

    examples: np.ndarray
    correct: np.ndarray
    suspects: np.ndarray
    expected_wrong: np.ndarray
    self_influence: np.ndarray
    suggested: np.ndarray
    suspicions: np.ndarray
    influences: Distributions
    between: np.ndarray | None = None

    @staticmethod
    def of(table: pa.Table, classes: int, wanted: SuspectsWanted) -> ClassSums:
        """The sums of some rows."""
        label, prediction, suggested, suspicion, influence = (
            table[name].to_numpy()
            for name in ("label", "prediction", "suggested_label", "suspicion", "self_influence")
        )
        suspected = suspicion >= wanted.min_suspicion
        return ClassSums(
            np.bincount(label, minlength=classes),
            np.bincount(label[prediction == label], minlength=classes),
            np.bincount(label[suspected], minlength=classes),
            np.bincount(label, suspicion, classes),
            np.bincount(label, influence, classes),
            _count_pairs(
                np.stack(
                    [label[suspected], suggested[suspected], np.ones(suspected.sum(), np.int64)],
                    axis=1,
                )
            ),
            np.histogram(suspicion, _SUSPICION_BINS, (0, 1))[0],
            Distributions.of(np.zeros_like(label), influence),
            _sum_by_label(table, label, classes),
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
                first.suspicions + part.suspicions,
                Distributions.merge([first.influences, part.influences]),
                None
                if first.between is None or part.between is None
                else first.between + part.between,
            )
        return first


def _sum_by_label(table: pa.Table, labels: np.ndarray, classes: int) -> np.ndarray | None:
    if "test_influence_by_label" not in table.column_names:
        return None
    values = (
        table["test_influence_by_label"]
        .combine_chunks()
        .flatten()
        .to_numpy(zero_copy_only=False)
        .reshape(len(labels), -1)
    )
    return np.stack([np.bincount(labels, column, classes) for column in values.T], axis=1)


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
    extremes: pa.Table
    slices: Slices | None
    slice_sums: np.ndarray
    slice_extremes: pa.Table
    members: pa.Table


def summarize(
    sums: ClassSums, listed: int, wanted: SuspectsWanted, settings: dict[str, Any]
) -> dict[str, Any]:
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
                "suggested": [
                    {"label": other, "suspects": count}
                    for label, other, count in by_count
                    if label == k
                ],
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
            {"label": label, "suggested_label": other, "suspects": count}
            for label, other, count in by_count[:_TOLD_CONFUSIONS]
        ],
        "classes": table,
        "suspicion_histogram": [
            {"from": i / _SUSPICION_BINS, "to": (i + 1) / _SUSPICION_BINS, "examples": int(count)}
            for i, count in enumerate(sums.suspicions)
        ],
        "self_influence_histogram": [
            {"from": low, "to": high, "examples": count}
            for low, high, count in sums.influences.octaves()
        ],
        "settings": settings,
    }


@dataclasses.dataclass
class WriteAudit(beam.PTransform):
    """Writes judged examples, suspects, duplicates, summary and changes, and commits them: what
    `AuditLabels` gives → Manifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
        classes: K.
        wanted: which examples are suspects.
        overwrite: whether a complete result is replaced.
        previews: how what is to see of an example is read, or None where there is nothing.
        class_names: of all classes, or None.
        previous: the audit to compare with, its directory and its manifest, or None.
        thresholds: what is told in the summary when it is crossed.
        fail_when_crossed: whether the graph then fails, after everything is committed.
        min_similarity: by which duplicates were found.
        no_pictures: why the report has none, or None.
        table: writes the rows to a table as well, or None.
    """

    directory: str
    draft: Manifest
    classes: int
    wanted: SuspectsWanted
    overwrite: bool
    previews: ExampleFormat | None = None
    class_names: Sequence[str] | None = None
    previous: tuple[str, Manifest] | None = None
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    fail_when_crossed: bool = False
    min_similarity: float = 1.0
    no_pictures: str | None = None
    table: WriteTable | None = None

    def _judge(self, one: Weighed, noise: Noise) -> tuple[AuditedExamples, Judgement]:
        known, evidence = pending.read(self.directory, one)
        return known, judge(evidence, known.labels, known.label_probabilities, noise)

    def _write(
        self,
        grouped: tuple[int, Iterable[Weighed]],
        _: list[None],
        duplicates: Duplicates,
        noise: Noise,
    ) -> WrittenExamples:
        shard, blocks = grouped
        judged = [self._judge(one, noise) for one in sorted(blocks, key=lambda one: one.file)]
        table = pa.concat_tables([to_table(*pair) for pair in judged]).combine_chunks()
        counters.add("rows-written", table.num_rows)
        found = judged[0][0].test_slices
        return WrittenExamples(
            shard,
            _write_parquet(
                self.directory, f"examples-{shard:05d}.parquet", table.drop_columns(["place"])
            ),
            ClassSums.of(table, self.classes, self.wanted),
            suspects(table, self.wanted),
            extremes(table),
            found,
            _values_by_slice(table).sum(axis=0)
            if "test_influence_by_slice" in table.column_names
            else np.zeros(0),
            slice_extremes(table, found),
            members(table, duplicates),
        )

    def _write_changes(self, changes: Changes, _: list[None]) -> tuple[Changes, StoredFile]:
        written = _write_parquet(
            self.directory, f"changes-{changes.bucket:05d}.parquet", changes.rows
        )
        # The rows are in the file now.
        return dataclasses.replace(changes, rows=changes.rows.schema.empty_table()), written

    def _listed(self, parts: Sequence[WrittenExamples]) -> pa.Table:
        ordered = sorted(parts, key=lambda part: part.shard)
        return suspects(
            pa.concat_tables([part.suspects for part in ordered]), self.wanted
        ).combine_chunks()

    def _ask(self, _: None, parts: Sequence[WrittenExamples]) -> Iterator[Asked]:
        rows = shown(self._listed(parts))
        if rows.num_rows:
            yield Asked(*(rows[name].to_numpy() for name in ("place", "label", "suggested_label")))

    def _choose_shown(
        self, _: None, parts: Sequence[WrittenExamples], neighbours: Sequence[pa.Table]
    ) -> Iterator[tuple[str, list[Origin]]]:
        rows = shown(self._listed(parts)).select(["source", "offset", "content_digest"]).to_pylist()
        rows += [
            row
            for one in shown_groups(joined_members([part.members for part in parts]))
            for row in one
        ]
        wanted = {
            (row["source"], row["offset"]): bytes.fromhex(row["content_digest"]) for row in rows
        }
        wanted |= {
            (row["source"], row["offset"]): row["content_digest"]
            for one in neighbours
            for row in one.to_pylist()
        }
        by_source: dict[str, list[Origin]] = {}
        for (source, offset), digest in wanted.items():
            by_source.setdefault(source, []).append(Origin(source, offset, digest))
        yield from by_source.items()

    def _commit(
        self,
        _: None,
        parts: Sequence[WrittenExamples],
        changes: Sequence[tuple[Changes, StoredFile]],
        previews: Sequence[tuple[tuple[str, int], Preview]],
        neighbours: Sequence[pa.Table],
        duplicates: Duplicates,
    ) -> Manifest:
        ordered = sorted(parts, key=lambda part: part.shard)
        sums = ClassSums.add([part.sums for part in ordered])
        listed = self._listed(parts).drop_columns(["place"])
        copies = joined_members([part.members for part in parts])
        labels = listed["label"].to_numpy()
        means = sums.self_influence / np.maximum(sums.examples, 1)
        relative = np.divide(
            listed["self_influence"].to_numpy(),
            means[labels],
            out=np.ones(len(labels)),
            where=means[labels] > 0,
        )
        listed = listed.append_column("relative_self_influence", pa.array(relative))
        summary = summarize(sums, listed.num_rows, self.wanted, dict(self.draft.settings))
        compared = sorted(changes, key=lambda pair: pair[0].bucket)
        if self.previous:
            directory, previous = self.previous
            known = {"directory": directory, "fingerprint": previous.fingerprint, **previous.counts}
            summary["drift"] = drift.summarize([part for part, _ in compared], known)
        most = pa.concat_tables([part.extremes for part in ordered])
        if most.num_rows:
            summary["test"] = summarize_test(most, sums)
            slices = ordered[0].slices
            if slices and (slices.named or slices.left_out):
                means = np.sum([part.slice_sums for part in ordered], axis=0) / sums.examples.sum()
                ends = pa.concat_tables([part.slice_extremes for part in ordered])
                summary["test"]["slices"] = summarize_slices(slices, means, ends)
                summary["test"]["slice_keys_left_out"] = list(slices.left_out)
        summary["duplicates"] = summarize_duplicates(
            duplicates, copies.num_rows, self.min_similarity
        )
        summary["crossed"] = self.thresholds.crossed(summary)
        page = report_page.render(
            summary,
            shown(listed).to_pylist(),
            dict(previews),
            self.class_names,
            [row for one in neighbours for row in one.to_pylist()],
            shown_groups(copies),
            self.no_pictures,
        )
        written = (
            *(part.file for part in ordered),
            *(file for _, file in compared),
            _write_parquet(self.directory, "suspects.parquet", listed),
            filesystems.write(self.directory, "suspects.jsonl", to_jsonl(listed), listed.num_rows),
            filesystems.write(
                self.directory,
                "suspects.csv",
                to_csv(_ACTION_COLUMNS, actions(listed)),
                listed.num_rows,
            ),
            _write_parquet(self.directory, "duplicates.parquet", copies),
            filesystems.write(
                self.directory, "duplicates.jsonl", to_jsonl(copies), copies.num_rows
            ),
            filesystems.write(self.directory, "report.html", page, 1),
            filesystems.write(
                self.directory,
                "summary.json",
                orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n",
                1,
            ),
        )
        counts = {
            "examples": summary["examples"],
            "suspects": summary["suspects"],
            "crossed": len(summary["crossed"]),
        }
        return manifests.commit(
            self.directory,
            dataclasses.replace(self.draft, files=written, counts=counts),
            overwrite=False,
        )

    def _check(self, committed: Manifest) -> Manifest:
        if self.fail_when_crossed and committed.counts["crossed"]:
            raise InputError(told_crossed(self.directory, read_summary(self.directory, committed)))
        return committed

    def expand(self, audited: Mapping[str, beam.PCollection]) -> beam.PCollection:
        examples = audited["weighed"]
        duplicates, noise = (
            beam.pvalue.AsSingleton(audited[name]) for name in ("duplicates", "noise")
        )
        ready = (
            examples.pipeline
            | "StartWriting" >> beam.Create([None])
            | "WithdrawOldAudit"
            >> beam.Map(
                lambda _: manifests.withdraw_old(self.directory, self.draft, self.overwrite)
            )
        )  # None
        written = (
            examples
            | "KeyByFile"
            >> beam.Map(lambda one: (one.file // _FILES_PER_FILE, one))  # (shard, Weighed)
            | "GroupByFile" >> beam.GroupByKey()  # (shard, [Weighed])
            | "WriteExamples"
            >> beam.Map(
                self._write, beam.pvalue.AsList(ready), duplicates, noise
            )  # WrittenExamples
        )
        if self.previous:
            changes = (
                examples
                | "MakeRows"
                >> beam.Map(
                    lambda one, known: to_table(*self._judge(one, known)), noise
                )  # pa.Table
                | "CompareAudits"
                >> CompareAudits(*self.previous, self.wanted.min_suspicion)  # Changes
                | "WriteChanges"
                >> beam.Map(self._write_changes, beam.pvalue.AsList(ready))  # (Changes, StoredFile)
            )
        else:
            changes = examples.pipeline | "CompareNothing" >> beam.Create([])
        asked = (
            examples.pipeline
            | "StartNeighbours" >> beam.Create([None])
            | "AskNeighbours" >> beam.FlatMap(self._ask, beam.pvalue.AsList(written))
        )  # Asked
        neighbours = (
            audited["sets"],
            audited["directions"],
            asked,
        ) | "FindNeighbours" >> FindNeighbours(_NEIGHBOURS)  # pa.Table
        if self.previews:
            seen = (beam.pvalue.AsList(one) for one in (written, neighbours))
            previews = (
                examples.pipeline
                | "StartReport" >> beam.Create([None])
                | "ChooseShown" >> beam.FlatMap(self._choose_shown, *seen)  # (source, [Origin])
                | "SpreadSources" >> beam.Reshuffle()  # (source, [Origin])
                | "ReadPreviews"
                >> beam.FlatMap(read_previews, self.previews)  # ((source, offset), Preview)
            )
        else:
            previews = examples.pipeline | "ShowNothing" >> beam.Create([])
        gathered = (beam.pvalue.AsList(one) for one in (written, changes, previews, neighbours))
        committed = (
            examples.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitAudit" >> beam.Map(self._commit, *gathered, duplicates)  # Manifest
        )
        if self.table:
            committed = committed | "WriteTable" >> self.table  # Manifest
        return (
            committed
            # Else a runner that tries a failing step again would also commit again.
            | "KeepCommitted" >> beam.Reshuffle()  # Manifest
            | "CheckThresholds" >> beam.Map(self._check)  # Manifest
        )


def _write_parquet(directory: str, name: str, table: pa.Table) -> StoredFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return filesystems.write(directory, name, buffer.getvalue(), table.num_rows)


def read_summary(directory: str, committed: Manifest) -> dict[str, Any]:
    """The summary of a committed audit."""
    (file,) = (file for file in committed.files if file.name == "summary.json")
    summary: dict[str, Any] = orjson.loads(filesystems.read_verified(directory, file))
    return summary


def told_crossed(directory: str, summary: Mapping[str, Any]) -> str:
    """Which thresholds an audit crosses, in one line."""
    told = [
        f"{row['what']} is {row['found']:.4g}, --{row['threshold']}={row['limit']:g}"
        for row in summary["crossed"]
    ]
    return f"{directory} is complete and crosses thresholds: {'; '.join(told)}"
