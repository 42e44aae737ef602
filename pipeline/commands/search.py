"""`tracin search`: each test example's proponents and opponents by an index of the training set,
scored exactly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.flags import parser
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.influence.config import InfluenceReportConfig, ScoringConfig
from transforms.influence.plan import influence_draft
from transforms.influence.write import WriteInfluence
from transforms.reports.class_names import read_class_names
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors import faiss_index
from transforms.vectors.config import SearchConfig
from transforms.vectors.recall import RECALL_FILE, MeasureRecall
from transforms.vectors.search import SearchIndex, SearchPlan

SEARCHING = progress.Stage(
    "Search", "tests-searched", "tests-planned", "tests-searched", "test examples"
)


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("search", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("search", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    faiss_index.require()
    train = manifests.read(args.train_features, FeatureManifest, "train_features")
    test = manifests.read(args.test_features, FeatureManifest, "test_features")
    plan = SearchPlan.of(
        SearchConfig(
            args.index,
            args.k,
            args.oversampling,
            args.nprobe,
            args.ef_search,
            args.recall_sample,
            args.test_ids,
        ),
        FeatureSet(args.test_features, test),
        FeatureSet(args.train_features, train),
    )
    class_names = read_class_names(args.class_names, train)
    settings = {**plan.settings, "class_names": class_names}
    config = ScoringConfig(args.k, plan.scoring.normalize, plan.scoring.learning_rates)
    draft = influence_draft(test, train, config, class_names, settings)
    if manifests.is_complete(args.output, draft, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        return
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
        rows = sets | "SearchIndex" >> SearchIndex(plan)  # (row, ScoredBlock)
        beside = (
            (sets, rows) | "MeasureRecall" >> MeasureRecall(plan) if plan.sample else None
        )  # (name, content)
        missed = (
            f"{RECALL_FILE} tells what part of the exact answer was found"
            if plan.sample
            else "what was missed has not been measured"
        )
        note = (
            "Proponents and opponents were looked for by an index, and those that it did not "
            f"offer are missing: {missed}."
        )
        names = tuple(class_names) if class_names else None
        write = WriteInfluence(
            args.output,
            config,
            InfluenceReportConfig(names, (note,)),
            args.overwrite,
            settings,
            beside,
        )
        (rows, *sets) | "WriteInfluence" >> write  # Manifest

    counts = runner.run_graph(build, beam_options, [SEARCHING])
    if counts is None:
        print("the graph is built; nothing has run")
        return
    written = runner.read_back(args.output, Manifest)
    print(report.influence(args.output, written))
    told = next((file for file in written.files if file.name == RECALL_FILE), None)
    print(report.recall(filesystems.read_verified(args.output, told) if told else None))
    print(report.done(started))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
