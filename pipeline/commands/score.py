"""`tracin score`: the strongest proponents and opponents of each test example, from two feature
sets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.flags import parser
from pipeline.preparation import output_table
from pipeline.preparation.scoring import scoring_config
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.influence.config import InfluenceReportConfig, ScoringConfig
from transforms.influence.plan import (
    check_memory,
    check_sets,
    influence_draft,
    largest_file,
    protocol_of,
)
from transforms.influence.score import ScoreInfluence
from transforms.influence.write import WriteInfluence
from transforms.reports.class_names import read_class_names
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet, read_feature_set
from transforms.storage.tables.bigquery_client import check_credentials
from transforms.storage.tables.bigquery_rows import TableRows
from transforms.storage.tables.bigquery_write import WriteTable


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("score", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("score", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    if args.output_table:
        check_credentials()
    train = read_feature_set(args.train_features, "train_features")
    test = read_feature_set(args.test_features, "test_features")
    config, processes = scoring_config(args), runner.processes_per_machine(beam_options)
    check_sets(test, train, config)
    class_names = read_class_names(args.class_names, train.manifest)
    draft = influence_draft(test.manifest, train.manifest, config, class_names)
    check_memory(config, train.shape, processes, largest_file(test.manifest, train.manifest))
    table = output_table.wanted(args, beam_options, influence_rows(train.manifest, config))
    if manifests.is_complete(args.output, draft, args.overwrite):
        output_table.finish(args.output, table, beam_options)
        return
    output_table.check(table, beam_options)
    filesystems.check_writable(args.output)

    def build(pipeline: beam.Pipeline) -> None:
        sets = (
            pipeline
            | "ReadTestFeatures"
            >> ReadFeatureSet(test.directory, "test_features", test.manifest.fingerprint),
            pipeline
            | "ReadTrainFeatures"
            >> ReadFeatureSet(train.directory, "train_features", train.manifest.fingerprint),
        )  # FeatureSet, FeatureSet
        names = tuple(class_names) if class_names else None
        write_influence(sets, args.output, config, processes, args.overwrite, names, table)

    counts = runner.run_graph(build, beam_options, [progress.SCORING])
    if counts is None:
        print("the graph is built; nothing has run")
        return
    print(report.influence(args.output, runner.read_back(args.output, Manifest)))
    output_table.tell(table)
    pairs = pairs_of(test.manifest, train.manifest, config)
    print(report.skipped(counts, pairs))
    print(report.done(started, scored=pairs))


def pairs_of(test: FeatureManifest, train: FeatureManifest, config: ScoringConfig) -> int:
    """Returns the number of pairs that are scored."""
    protocol = protocol_of(config)
    return protocol.count(test) * protocol.count(train)


def influence_rows(train: FeatureManifest, config: ScoringConfig) -> TableRows:
    """Returns which files of a result are rows of a table, and their schema."""
    return TableRows("influence-", protocol_of(config).schema(train.task, train.outputs))


def write_influence(
    sets: tuple[beam.PCollection, beam.PCollection],
    output: str,
    config: ScoringConfig,
    processes: int | None,
    overwrite: bool,
    class_names: tuple[str, ...] | None = None,
    table: WriteTable | None = None,
) -> beam.PCollection:
    """Adds all of stage 2 to a graph: (test, train) FeatureSet → Manifest of the result."""
    blocks = sets | "ScoreInfluence" >> ScoreInfluence(
        config, processes
    )  # (test_start, ScoredBlock)
    write = WriteInfluence(output, config, InfluenceReportConfig(class_names), overwrite)
    committed = (blocks, *sets) | "WriteInfluence" >> write  # Manifest
    return committed | "WriteTable" >> table if table else committed  # Manifest


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
