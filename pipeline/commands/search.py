"""`tracin search`: each test example's proponents and opponents by an index of the training set,
scored exactly.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.flags import parser
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.core.errors import InputError
from transforms.influence.write import ReportWanted, WriteInfluence
from transforms.reports.class_names import read_class_names
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import rows_per_file
from transforms.storage import feature_manifest, filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors import faiss_index
from transforms.vectors.recall import RECALL_FILE, MeasureRecall
from transforms.vectors.search import SearchIndex, SearchPlan, find_rows

_SEARCHING = progress.Stage(
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
    found = manifests.read_kind(args.index, "index", "index")
    train = manifests.read(args.train_features, FeatureManifest, "train_features")
    test = manifests.read(args.test_features, FeatureManifest, "test_features")
    feature_manifest.check_same_model(test, train, args.test_features, args.train_features)
    if found.settings["train_features"] != train.fingerprint:
        raise InputError(
            f"--index={args.index!r} was built from another feature set than "
            f"--train_features={args.train_features!r}: name the one that "
            "it was built from, or build it anew with `tracin index`"
        )
    _check_effort(args, found.settings["kind"])
    if args.test_ids:
        find_rows(FeatureSet(args.test_features, test), args.test_ids)
    scoring = Scoring(tuple(found.settings["learning_rates"]), args.k, found.settings["normalize"])
    sample = min(args.recall_sample, len(args.test_ids) or test.examples)
    plan = SearchPlan(
        args.index,
        found,
        scoring,
        args.oversampling,
        args.nprobe,
        args.ef_search,
        args.test_ids,
        sample,
    )
    class_names = read_class_names(args.class_names, train)
    settings = {
        "index": found.fingerprint,
        "test_features": test.fingerprint,
        "train_features": train.fingerprint,
        "learning_rates": found.settings["learning_rates"],
        "normalize": found.settings["normalize"],
        "k": args.k,
        "oversampling": args.oversampling,
        "nprobe": args.nprobe,
        "ef_search": args.ef_search,
        "test_ids": list(args.test_ids),
        "recall_sample": args.recall_sample,
        "class_names": class_names,
    }
    draft = Manifest("influence", manifests.fingerprint(settings), settings, (), {})
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
            (sets, rows) | "MeasureRecall" >> MeasureRecall(plan) if sample else None
        )  # (name, content)
        report_wanted = ReportWanted.of(test, train, class_names)
        missed = (
            f"{RECALL_FILE} tells what part of the exact answer was found"
            if sample
            else "what was missed has not been measured"
        )
        note = (
            "Proponents and opponents were looked for by an index, and those that it did not "
            f"offer are missing: {missed}."
        )
        report_wanted = dataclasses.replace(report_wanted, notes=(*report_wanted.notes, note))
        write = WriteInfluence(
            args.output,
            draft,
            train.task,
            train.outputs,
            rows_per_file(args.k),
            args.overwrite,
            report_wanted,
            beside,
        )
        (rows, *sets) | "WriteInfluence" >> write  # Manifest

    counts = runner.run_graph(build, beam_options, [_SEARCHING])
    if counts is None:
        print("the graph is built; nothing has run")
        return
    written = runner.read_back(args.output, Manifest)
    print(report.influence(args.output, written))
    told = next((file for file in written.files if file.name == RECALL_FILE), None)
    print(report.recall(filesystems.read_verified(args.output, told) if told else None))
    print(report.done(started))


def _check_effort(args: argparse.Namespace, kind: str) -> None:
    """Makes sure that a flag says how far an index of its own kind is searched.

    Raises:
        InputError: the index is of another kind.
    """
    for flag, kinds in (("nprobe", ("auto", "ivf")), ("ef_search", ("hnsw",))):
        if getattr(args, flag) and kind not in kinds:
            raise InputError(
                f"--{flag} is for indexes of --kind={kinds[-1]}, and --index={args.index!r} is of "
                f"{kind}: leave it out"
            )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
