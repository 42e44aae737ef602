"""Influence as a committed directory: files of rows, a report, and a manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam

from transforms.examples.format import ExampleFormat
from transforms.influence import report_page, traces
from transforms.influence.blocks import ScoredBlock, SummedBlock
from transforms.influence.rows import WrittenRows, schema, write_rows
from transforms.influence.traces import SeeExamples, Trace
from transforms.reports.previews import Preview, preview_format, why_no_pictures
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.manifests import Manifest


@dataclasses.dataclass(frozen=True)
class ReportWanted:
    """How the report is made.

    Attributes:
        tests, trains: how what is to see of the examples of each set is read, or None where there
            is nothing.
        class_names: of all classes, or None.
        notes: what is to be told of the result, such as why there are no pictures.
    """

    tests: ExampleFormat | None = None
    trains: ExampleFormat | None = None
    class_names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        test: FeatureManifest,
        train: FeatureManifest,
        class_names: Sequence[str] | None,
        sum_positions: bool = False,
    ) -> ReportWanted:
        """For two sets."""
        notes = [
            f"{name} set: {note}"
            for name, one in (("Test", test), ("Training", train))
            if (note := why_no_pictures(one))
        ]
        if test.settings.get("labels") == "predicted":
            notes.append(
                "Labels of the test examples are the model's own predictions: the first are those "
                "that it is least certain of."
            )
        if sum_positions:
            notes.append(
                "Scores are sums over all pairs of positions of two examples; the probability of "
                "labels is a mean over positions."
            )
        return ReportWanted(preview_format(test), preview_format(train), class_names, tuple(notes))


@dataclasses.dataclass
class WriteInfluence(beam.PTransform):
    """Writes scored blocks as rows, and a report, and commits them with a manifest: ((row number,
    ScoredBlock), test FeatureSet (one), training FeatureSet (one)) → Manifest (one).

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

    def _write(
        self, grouped: tuple[int, Iterable[tuple[int, ScoredBlock | SummedBlock]]], _: list[None]
    ) -> WrittenRows:
        return write_rows(
            self.directory, *grouped, schema(self.task, self.outputs, self.sum_positions)
        )

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
        page = report_page.render(
            traces.worst(shown),
            count,
            self.draft.settings,
            (dict(tests), dict(trains)),
            wanted.class_names,
            wanted.notes,
        )
        rows = (file for part in ordered for file in (part.jsonl, part.parquet))
        more = [
            filesystems.write(self.directory, name, content, 0) for name, content in sorted(beside)
        ]
        committed = dataclasses.replace(
            self.draft,
            files=(*rows, filesystems.write(self.directory, "report.html", page, 1), *more),
            counts={"rows": count},
        )
        return manifests.commit(self.directory, committed, overwrite=False)

    def expand(
        self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]
    ) -> beam.PCollection:
        blocks, test, train = collections
        ready = (
            blocks.pipeline
            | "StartWriting" >> beam.Create([None])
            | "WithdrawOldResult"
            >> beam.Map(
                lambda _: manifests.withdraw_old(self.directory, self.draft, self.overwrite)
            )  # None
        )
        written = (
            blocks
            | "KeyByFile"
            >> beam.MapTuple(
                lambda start, block, rows=self.rows: (start // rows, (start, block))
            )  # (shard, (row, ScoredBlock))
            | "GroupByFile" >> beam.GroupByKey()  # (shard, [(row, ScoredBlock)])
            | "WriteRows" >> beam.Map(self._write, beam.pvalue.AsList(ready))  # WrittenRows
        )
        shown = (
            blocks.pipeline
            | "StartReport" >> beam.Create([None])
            | "ChooseShown" >> beam.FlatMap(self._choose, beam.pvalue.AsList(written))  # Trace
        )
        seen = [
            (sets, shown)
            | f"See{name}Examples" >> SeeExamples(trains, form, self.sum_positions)  # (id, Preview)
            for name, sets, trains, form in (
                ("Test", test, False, self.report.tests),
                ("Train", train, True, self.report.trains),
            )
        ]
        gathered = [written, shown, *seen, *([] if self.beside is None else [self.beside])]
        return (
            blocks.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitInfluence"
            >> beam.Map(self._commit, *map(beam.pvalue.AsList, gathered))  # Manifest
        )
