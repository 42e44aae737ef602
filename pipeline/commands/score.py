"""`tracin score`: the strongest proponents and opponents of each test example, from two feature
sets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.flags import parser
from pipeline.preparation import output_table
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.core.errors import InputError
from transforms.influence.plan import ScoringPlan, largest_file
from transforms.influence.rows import schema
from transforms.influence.score import ScoreInfluence
from transforms.influence.score_positions import ScoreSums
from transforms.influence.write import ReportWanted, WriteInfluence
from transforms.reports.class_names import read_class_names
from transforms.scoring.tiles import rows_per_file
from transforms.storage import feature_manifest, filesystems, manifests
from transforms.storage.bigquery import TableRows, WriteTable, check_credentials
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("score", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("score", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    if args.output_table:
        check_credentials()
    train = manifests.read(args.train_features, FeatureManifest, "train_features")
    test = manifests.read(args.test_features, FeatureManifest, "test_features")
    feature_manifest.check_same_model(test, train, args.test_features, args.train_features)
    if not train.examples:
        raise InputError(
            f"--train_features={args.train_features!r} holds no example: there is nothing to score "
            "against"
        )
    if args.sum_positions:
        feature_manifest.check_positions(train, args.train_features)
        feature_manifest.check_positions(test, args.test_features)
    plan = scoring_plan(args, beam_options)
    class_names = read_class_names(args.class_names, train)
    draft = influence_draft(
        args, plan.scoring(train).learning_rates, test.fingerprint, train.fingerprint, class_names
    )
    plan.check_memory(FeatureSet(args.train_features, train).shape, largest_file(test, train))
    table = output_table.wanted(args, beam_options, influence_rows(train, plan.sum_positions))
    if manifests.is_complete(args.output, draft, args.overwrite):
        output_table.finish(args.output, table, beam_options)
        return
    output_table.check(table, beam_options)
    filesystems.check_writable(args.output)

    def build(pipeline: beam.Pipeline) -> None:
        sets = (
            pipeline
            | "ReadTestFeatures"
            >> ReadFeatureSet(args.test_features, "test_features", test.fingerprint),
            pipeline
            | "ReadTrainFeatures"
            >> ReadFeatureSet(args.train_features, "train_features", train.fingerprint),
        )  # FeatureSet, FeatureSet
        wanted = ReportWanted.of(test, train, class_names, plan.sum_positions)
        write_influence(sets, args.output, plan, draft, train, args.overwrite, wanted, table)

    counts = runner.run_graph(build, beam_options, [progress.SCORING])
    if counts is None:
        print("the graph is built; nothing has run")
        return
    print(report.influence(args.output, runner.read_back(args.output, Manifest)))
    output_table.tell(table)
    pairs = pairs_of(test, train, plan)
    print(report.skipped(counts, pairs))
    print(report.done(started, scored=pairs))


def pairs_of(test: FeatureManifest, train: FeatureManifest, plan: ScoringPlan) -> int:
    """How many pairs of two sets are scored: of records, or of the examples that these are
    positions of.
    """
    return (
        test.counts["examples"] * train.counts["examples"]
        if plan.sum_positions
        else test.examples * train.examples
    )


def scoring_plan(args: argparse.Namespace, beam_options: PipelineOptions) -> ScoringPlan:
    """What the scoring flags ask for."""
    return ScoringPlan(
        args.learning_rates,
        args.k,
        args.normalize,
        args.memory_gb,
        runner.processes_per_machine(beam_options),
        args.test_rows_per_tile,
        args.train_rows_per_tile,
        args.sum_positions,
    )


def influence_draft(
    args: argparse.Namespace,
    learning_rates: Sequence[float],
    test_fingerprint: str,
    train_fingerprint: str,
    class_names: Sequence[str] | None = None,
) -> Manifest:
    """The manifest of the result, its files and counts still missing.

    Memory and tiles are no part of its settings: the rows do not depend on them.
    """
    settings: dict[str, Any] = {
        "test_features": test_fingerprint,
        "train_features": train_fingerprint,
        "learning_rates": list(learning_rates),
        "k": args.k,
        "normalize": args.normalize,
        **({"sum_positions": True} if args.sum_positions else {}),
    }
    if class_names:
        settings["class_names"] = list(class_names)
    return Manifest("influence", manifests.fingerprint(settings), settings, (), {})


def influence_rows(train: FeatureManifest, sum_positions: bool) -> TableRows:
    """What of a result is rows of a table; `train` tells the type of labels."""
    return TableRows("influence-", schema(train.task, train.outputs, sum_positions))


def write_influence(
    sets: tuple[beam.PCollection, beam.PCollection],
    output: str,
    plan: ScoringPlan,
    draft: Manifest,
    train: FeatureManifest,
    overwrite: bool,
    wanted: ReportWanted,
    table: WriteTable | None = None,
) -> beam.PCollection:
    """Stage 2, whole: (test, train) FeatureSet → Manifest of the result. `train` tells the type of
    labels.
    """
    score = ScoreSums(plan) if plan.sum_positions else ScoreInfluence(plan)
    blocks = sets | "ScoreInfluence" >> score  # (test_start, ScoredBlock or SummedBlock)
    rows = rows_per_file(plan.k)
    write = WriteInfluence(
        output,
        draft,
        train.task,
        train.outputs,
        rows,
        overwrite,
        wanted,
        sum_positions=plan.sum_positions,
    )
    committed = (blocks, *sets) | "WriteInfluence" >> write  # Manifest
    return committed | "WriteTable" >> table if table else committed  # Manifest


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
