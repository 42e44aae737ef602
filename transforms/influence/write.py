"""Influence as a committed directory: files of rows, a report, and a manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam

from transforms.influence import report_page, traces
from transforms.influence.config import InfluenceReportConfig, ScoringConfig
from transforms.influence.plan import influence_draft, protocol_of
from transforms.influence.protocol import ScoredBlock
from transforms.influence.rows import WrittenRows, write_rows
from transforms.influence.traces import SeeExamples, Trace
from transforms.reports.previews import Preview, why_no_pictures
from transforms.scoring.tiles import rows_per_file
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest, Manifest


def notes_of(
    test: FeatureManifest, train: FeatureManifest, config: ScoringConfig
) -> tuple[str, ...]:
    """Returns sentences for the report that follow from the feature sets and the scoring."""
    notes = [
        f"{name} set: {note}"
        for name, manifest in (("Test", test), ("Training", train))
        if (note := why_no_pictures(manifest))
    ]
    if test.settings.get("labels") == "predicted":
        notes.append(
            "Labels of the test examples are the model's own predictions: the first are those "
            "that it is least certain of."
        )
    return (*notes, *protocol_of(config).notes)


def choose_shown(_: None, parts: Sequence[WrittenRows]) -> list[Trace]:
    """Returns the worst-predicted test examples of all shards."""
    return traces.worst(trace for part in parts for trace in part.worst)


def commit_rows(
    output: str,
    draft: Manifest,
    parts: Sequence[WrittenRows],
    page: bytes,
    beside: Sequence[tuple[str, bytes]],
) -> Manifest:
    """Writes the report and the files beside it, (name, content), and commits all that is written
    with the manifest's draft; returns the committed manifest.
    """
    ordered = sorted(parts, key=lambda part: part.shard)
    rows = (file for part in ordered for file in (part.jsonl, part.parquet))
    more = [filesystems.write(output, name, content, 0) for name, content in sorted(beside)]
    committed = dataclasses.replace(
        draft,
        files=(*rows, filesystems.write(output, "report.html", page, 1), *more),
        counts={"rows": sum(part.jsonl.count for part in ordered)},
    )
    return manifests.commit(output, committed, overwrite=False)


@dataclasses.dataclass
class WriteInfluence(beam.PTransform):
    """Writes scored blocks as rows, with a report, and commits them: ((row number, ScoredBlock),
    test FeatureSet (one), training FeatureSet (one)) → Manifest (one).

    The manifest is that of `plan.influence_draft`. A complete result with the same settings stands;
    one with other settings is refused, or with `overwrite` withdrawn before the first row is
    written.

    Attributes:
        output: directory of the result.
        config: how the blocks were scored.
        report: what the report shows besides the rows.
        overwrite: whether a complete result is replaced.
        settings: further settings of the result that the rows depend on.
        beside: small files that are committed with the rows, (name, content); or None.
    """

    output: str
    config: ScoringConfig
    report: InfluenceReportConfig = dataclasses.field(default_factory=InfluenceReportConfig)
    overwrite: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: beam.PCollection | None = None

    def _draft(self, test: FeatureSet, train: FeatureSet) -> Manifest:
        names = self.report.class_names
        return influence_draft(test.manifest, train.manifest, self.config, names, self.settings)

    def _withdraw(self, _: None, test: FeatureSet, train: FeatureSet) -> None:
        manifests.withdraw_old(self.output, self._draft(test, train), self.overwrite)

    def _write(
        self,
        grouped: tuple[int, Iterable[tuple[int, ScoredBlock]]],
        train: FeatureSet,
        _: list[None],
    ) -> WrittenRows:
        schema = protocol_of(self.config).schema(train.manifest.task, train.manifest.outputs)
        return write_rows(self.output, *grouped, schema)

    def _commit(
        self,
        _: None,
        test: FeatureSet,
        train: FeatureSet,
        parts: Sequence[WrittenRows],
        shown: Sequence[Trace],
        tests: Sequence[tuple[str, Preview]],
        trains: Sequence[tuple[str, Preview]],
        beside: Sequence[tuple[str, bytes]] = (),
    ) -> Manifest:
        draft = self._draft(test, train)
        page = report_page.render(
            traces.worst(shown),
            sum(part.jsonl.count for part in parts),
            draft.settings,
            (dict(tests), dict(trains)),
            self.report.class_names,
            notes_of(test.manifest, train.manifest, self.config) + self.report.notes,
        )
        return commit_rows(self.output, draft, parts, page, beside)

    def expand(
        self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]
    ) -> beam.PCollection:
        blocks, test, train = collections
        sides = beam.pvalue.AsSingleton(test), beam.pvalue.AsSingleton(train)
        shard_rows = rows_per_file(self.config.k)
        ready = (
            blocks.pipeline
            | "StartWriting" >> beam.Create([None])
            | "WithdrawOldResult" >> beam.Map(self._withdraw, *sides)  # None
        )
        written = (
            blocks
            | "KeyByFile"
            >> beam.MapTuple(
                lambda start, block: (start // shard_rows, (start, block))
            )  # (shard, (row, ScoredBlock))
            | "GroupByFile" >> beam.GroupByKey()  # (shard, [(row, ScoredBlock)])
            | "WriteRows"
            >> beam.Map(self._write, sides[1], beam.pvalue.AsList(ready))  # WrittenRows
        )
        shown = (
            blocks.pipeline
            | "StartReport" >> beam.Create([None])
            | "ChooseShown" >> beam.FlatMap(choose_shown, beam.pvalue.AsList(written))  # Trace
        )
        seen = [
            (sets, shown)
            | f"See{name}Examples"
            >> SeeExamples(trains, protocol_of(self.config).sums_positions)  # (id, Preview)
            for name, sets, trains in (("Test", test, False), ("Train", train, True))
        ]
        gathered = [written, shown, *seen, *([] if self.beside is None else [self.beside])]
        return (
            blocks.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitInfluence"
            >> beam.Map(self._commit, *sides, *map(beam.pvalue.AsList, gathered))  # Manifest
        )
