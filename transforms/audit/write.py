"""An audit as files, committed by a manifest.

| file | content |
|---|---|
| `examples-*.parquet` | a row for each example, in the feature set's order; see `rows` |
| `suspects.parquet`, `suspects.jsonl` | the rows of the listed suspects; see `selection` |
| `suspects.csv` | for a spreadsheet: the listed suspects, each with a proposed action |
| `duplicates.parquet`, `duplicates.jsonl` | the members of groups of duplicates |
| `changes-*.parquet` | with a previous audit: the examples and suspects that changed; see `drift` |
| `summary.json` | counts, and a table of the classes; see `summary` |
| `report.html` | the same for a person, with pictures of the suspects; see `report` |
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.audit import report, selection
from transforms.audit.config import AuditConfig, AuditPlan
from transforms.audit.drift import Changes, CompareAudits
from transforms.audit.report import IllustrateReport, Shown
from transforms.audit.rows import AuditedExamples, PendingExamples, read_pending, to_table
from transforms.audit.summary import (
    ClassSums,
    ShardSummary,
    describe_crossed,
    read_summary,
    summarize,
)
from transforms.audit.suspicion import Judgement, Noise, judge
from transforms.core.errors import InputError
from transforms.duplicates.find import Duplicates
from transforms.reports.previews import Preview
from transforms.runtime import counters
from transforms.storage import filesystems, manifests
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.tables.bigquery_write import WriteTable
from transforms.storage.tables.spreadsheets import to_csv
from transforms.storage.tables.tabular import to_jsonl

# Feature files whose examples are rows of a shard: at most 131,072 rows.
_FILES_PER_SHARD = 16


@dataclasses.dataclass(frozen=True, eq=False)
class WrittenShard:
    """A shard of rows that is written, and its contributions to the other files.

    Attributes:
        shard: its number.
        file: its file.
        summary: its part of the summary.
        suspects: rows; see `selection.suspects`.
        members: rows; see `selection.members`.
    """

    shard: int
    file: StoredFile
    summary: ShardSummary
    suspects: pa.Table
    members: pa.Table


def read_judged(
    directory: str, pending: PendingExamples, noise: Noise
) -> tuple[AuditedExamples, Judgement]:
    """Reads pending examples and judges their labels.

    Raises:
        InputError: the file is gone or damaged.
    """
    examples, evidence = read_pending(directory, pending)
    return examples, judge(evidence, examples.labels, examples.label_probabilities, noise)


def write_shard(
    grouped: tuple[int, Iterable[PendingExamples]],
    directory: str,
    config: AuditConfig,
    plan: AuditPlan,
    duplicates: Duplicates,
    noise: Noise,
) -> WrittenShard:
    """Writes a shard of rows: (shard, pending examples of its feature files)."""
    shard, files = grouped
    judged = [
        read_judged(directory, pending, noise)
        for pending in sorted(files, key=lambda pending: pending.file)
    ]
    table = pa.concat_tables([to_table(*pair) for pair in judged]).combine_chunks()
    counters.add("rows-written", table.num_rows)
    slices = judged[0][0].test_slices
    return WrittenShard(
        shard,
        _write_parquet(directory, f"examples-{shard:05d}.parquet", table.drop_columns(["record"])),
        ShardSummary.of(table, slices, plan.classes, config.min_suspicion),
        selection.suspects(table, config.min_suspicion, config.max_suspects_per_class),
        selection.members(table, duplicates),
    )


def write_changes(changes: Changes, directory: str) -> tuple[Changes, StoredFile]:
    """Writes the rows of a bucket's changes; returns the changes without them, and the file."""
    file = _write_parquet(directory, f"changes-{changes.bucket:05d}.parquet", changes.rows)
    return dataclasses.replace(changes, rows=changes.rows.schema.empty_table()), file


def _in_order(shards: Iterable[WrittenShard]) -> list[WrittenShard]:
    return sorted(shards, key=lambda shard: shard.shard)


def _listed_suspects(shards: Iterable[WrittenShard], config: AuditConfig) -> pa.Table:
    rows = pa.concat_tables([shard.suspects for shard in _in_order(shards)])
    return selection.suspects(
        rows, config.min_suspicion, config.max_suspects_per_class
    ).combine_chunks()


def choose_shown(shards: Iterable[WrittenShard], config: AuditConfig) -> Shown:
    """Chooses the suspects and the groups of duplicates of the report."""
    known = list(shards)
    members = selection.join_members([shard.members for shard in known])
    return Shown(
        selection.shown_suspects(_listed_suspects(known, config)), selection.shown_groups(members)
    )


def commit(
    shards: Iterable[WrittenShard],
    changes: Iterable[tuple[Changes, StoredFile]],
    previews: Mapping[tuple[str, int], Preview],
    neighbours: Iterable[pa.Table],
    duplicates: Duplicates,
    directory: str,
    config: AuditConfig,
    plan: AuditPlan,
) -> Manifest:
    """Writes the remaining files of an audit and commits it."""
    ordered = _in_order(shards)
    compared = sorted(changes, key=lambda pair: pair[0].bucket)
    sums = ClassSums.add([shard.summary.sums for shard in ordered])
    suspects = selection.with_relative(
        _listed_suspects(ordered, config).drop_columns(["record"]), sums.mean_self_influence
    )
    members = selection.join_members([shard.members for shard in ordered])
    summary = summarize(
        [shard.summary for shard in ordered],
        [part for part, _ in compared],
        duplicates,
        {"suspects": suspects.num_rows, "duplicates": members.num_rows},
        config,
        plan,
    )
    page = report.render(
        summary,
        selection.shown_suspects(suspects).to_pylist(),
        previews,
        plan.class_names,
        [row for table in neighbours for row in table.to_pylist()],
        selection.shown_groups(members),
        plan.note,
    )
    files = (
        *(shard.file for shard in ordered),
        *(file for _, file in compared),
        *_write_lists(directory, suspects, members),
        filesystems.write(directory, "report.html", page, 1),
        filesystems.write(
            directory, "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n", 1
        ),
    )
    counts = {name: summary[name] for name in ("examples", "suspects")}
    counts["crossed"] = len(summary["crossed"])
    return manifests.commit(
        directory, dataclasses.replace(plan.draft, files=files, counts=counts), overwrite=False
    )


def _write_lists(directory: str, suspects: pa.Table, members: pa.Table) -> Iterator[StoredFile]:
    """Writes the listed suspects and the members of groups of duplicates."""
    sheet = to_csv(selection.ACTION_COLUMNS, selection.actions(suspects))
    yield _write_parquet(directory, "suspects.parquet", suspects)
    yield filesystems.write(directory, "suspects.jsonl", to_jsonl(suspects), suspects.num_rows)
    yield filesystems.write(directory, "suspects.csv", sheet, suspects.num_rows)
    yield _write_parquet(directory, "duplicates.parquet", members)
    yield filesystems.write(directory, "duplicates.jsonl", to_jsonl(members), members.num_rows)


def _write_parquet(directory: str, name: str, table: pa.Table) -> StoredFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return filesystems.write(directory, name, buffer.getvalue(), table.num_rows)


@dataclasses.dataclass
class WriteAudit(beam.PTransform):
    """Writes the files of an audit and commits them: the collections that `AuditLabels` returns →
    Manifest (one).

    Attributes:
        config: settings, equal to those of `AuditLabels`.
        output: directory of the audit, the same as that of `AuditLabels`.
        table: writes the committed rows to a BigQuery table, too, or None.
    """

    config: AuditConfig
    output: str
    table: WriteTable | None = None

    def _withdraw(self, plan: AuditPlan) -> None:
        plan.check(self.config, self.output)
        manifests.withdraw_old(self.output, plan.draft, self.config.overwrite)

    def _compare(
        self, audited: Mapping[str, beam.PCollection], withdrawn: beam.pvalue.AsList
    ) -> beam.PCollection:
        """(Changes, StoredFile) of each bucket; nothing without a previous audit."""
        plan, noise = audited["plan"], beam.pvalue.AsSingleton(audited["noise"])
        if not self.config.previous:
            return plan.pipeline | "CompareNothing" >> beam.Create([])
        previous = plan | "NamePreviousAudit" >> beam.Map(lambda plan: plan.previous)  # Manifest
        rows = audited["pending"] | "MakeRows" >> beam.Map(
            lambda pending, noise: to_table(*read_judged(self.output, pending, noise)), noise
        )  # pa.Table
        return (
            (rows, previous)
            | "CompareAudits"
            >> CompareAudits(self.config.previous, self.config.min_suspicion)  # Changes
            | "WriteChanges"
            >> beam.Map(lambda changes, _: write_changes(changes, self.output), withdrawn)
            # (Changes, StoredFile)
        )

    def _check(self, manifest: Manifest) -> Manifest:
        if self.config.fail_on_drift and manifest.counts["crossed"]:
            raise InputError(describe_crossed(self.output, read_summary(self.output, manifest)))
        return manifest

    def expand(self, audited: Mapping[str, beam.PCollection]) -> beam.PCollection:
        plan, duplicates, noise = (
            beam.pvalue.AsSingleton(audited[name]) for name in ("plan", "duplicates", "noise")
        )
        start = audited["plan"].pipeline | "StartWriting" >> beam.Create([None])
        withdrawn = beam.pvalue.AsList(
            start
            | "WithdrawOldAudit" >> beam.Map(lambda _, plan: self._withdraw(plan), plan)  # None
        )
        shards = (
            audited["pending"]
            | "KeyByShard" >> beam.Map(lambda pending: (pending.file // _FILES_PER_SHARD, pending))
            # (shard, PendingExamples)
            | "GroupByShard" >> beam.GroupByKey()  # (shard, [PendingExamples])
            | "WriteExamples"
            >> beam.Map(
                lambda grouped, _, *inputs: write_shard(grouped, self.output, self.config, *inputs),
                withdrawn,
                plan,
                duplicates,
                noise,
            )  # WrittenShard
        )
        written = beam.pvalue.AsList(shards)
        shown = start | "ChooseShown" >> beam.Map(
            lambda _, shards: choose_shown(shards, self.config), written
        )  # Shown
        seen = {**audited, "shown": shown} | "IllustrateReport" >> IllustrateReport()
        committed = start | "CommitAudit" >> beam.Map(
            lambda _, *inputs: commit(*inputs),
            written,
            beam.pvalue.AsList(self._compare(audited, withdrawn)),
            beam.pvalue.AsDict(seen["previews"]),
            beam.pvalue.AsList(seen["neighbours"]),
            duplicates,
            self.output,
            self.config,
            plan,
        )  # Manifest
        if self.table:
            committed = committed | "WriteTable" >> self.table  # Manifest
        return (
            committed
            # Else a runner that retries the failing step would also commit again.
            | "KeepCommitted" >> beam.Reshuffle()  # Manifest
            | "CheckThresholds" >> beam.Map(self._check)  # Manifest
        )
