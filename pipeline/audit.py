"""`tracin audit`: which labels of a training set are likely wrong, from its feature set, which is extracted first where it is not there."""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import sys
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline import inputs, names, options, progress, report, runner
from pipeline.features import extraction, feature_set
from pipeline.score import read_set
from transforms import audits, files, manifest
from transforms.audit_files import SuspectsWanted, WriteAudit, read_summary, told_crossed
from transforms.audits import AuditLabels
from transforms.drift import Thresholds
from transforms.errors import InputError
from transforms.manifest import FeatureManifest, Manifest, usable_rates
from transforms.previews import preview_format, why_no_pictures
from transforms.scores import FeatureSet


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("audit", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = options.parse("audit", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    wanted = None
    if args.features:
        found = manifest.read(args.features, FeatureManifest, "features")
        audits.check_not_empty(found, args.features)
        rates = usable_rates(found, args.learning_rates)
    else:
        prepared = inputs.prepare_model(args, rates_needed=True)
        base = args.base and files.join(args.base, "features")
        directory = files.join(args.output, "features")
        wanted = inputs.prepare_features(args, args.examples, "examples", "given", directory, base, prepared, args.overwrite)
        found = wanted.stage.write.draft
        rates = usable_rates(found, None)
    audits.check_labels(found, args.features or args.examples)
    previous = manifest.read_audit(args.previous, "previous") if args.previous else None
    if previous and posixpath.normpath(args.previous) == posixpath.normpath(args.output):
        raise InputError(f"--previous={args.previous!r} is where the new audit would go: give it a directory of its own")
    class_names = names.read_class_names(args.class_names, found)
    test = (
        FeatureSet(args.test_features, manifest.read(args.test_features, FeatureManifest, "test_features")) if args.test_features else None
    )
    if test:
        audits.check_labels(test.manifest, args.test_features)
        manifest.check_same_model(test.manifest, found, args.test_features, args.features or args.examples)
        if not test.manifest.examples:
            raise InputError(f"--test_features={args.test_features!r} holds no example: there is nothing to influence")
    thresholds = Thresholds(args.max_suspect_fraction, args.max_appeared_suspects, args.max_shift)
    settings: dict[str, Any] = {
        "features": found.fingerprint,
        "learning_rates": list(rates),
        "min_suspicion": args.min_suspicion,
        "max_suspects_per_class": args.max_suspects_per_class,
        "min_similarity": args.min_similarity,
        "previous": previous and previous.fingerprint,
        "class_names": class_names,
        "test_features": test and test.manifest.fingerprint,
        "thresholds": dataclasses.asdict(thresholds),
    }
    draft = Manifest("audit", manifest.fingerprint(settings), settings, (), {})
    if manifest.is_complete(args.output, draft.kind, draft.fingerprint, draft.settings, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        _fail_if_crossed(args)
        return
    files.check_writable(args.output)
    if wanted:
        print(report.checkpoints(prepared))
        if wanted.complete:
            print("features: already complete, used as they are")
    suspects = SuspectsWanted(args.min_suspicion, args.max_suspects_per_class)

    def build(pipeline: beam.Pipeline) -> None:
        if wanted:
            sets = feature_set(pipeline, "Train", wanted)  # FeatureSet
        else:
            sets = (
                pipeline
                | "NameTrainSet" >> beam.Create([args.features])  # directory
                | "ReadTrainManifest" >> beam.Map(read_set, "features", found.fingerprint)  # FeatureSet
            )
        (
            sets
            | "AuditLabels" >> AuditLabels(rates, args.min_similarity, test)  # judged examples, duplicates, and what they come from
            | "WriteAudit"
            >> WriteAudit(
                args.output,
                draft,
                audits.classes(found),
                suspects,
                args.overwrite,
                preview_format(found),
                class_names,
                (args.previous, previous) if previous else None,
                thresholds,
                args.fail_on_drift,
                args.min_similarity,
                why_no_pictures(found),
            )  # Manifest
        )

    stages = [
        *(extraction([wanted]) if wanted and not wanted.complete else []),
        progress.Stage("Sum activations", "examples-summed", "examples-planned", "examples-summed", "examples"),
        progress.Stage("Judge labels", "examples-audited", "examples-planned", "examples-audited", "examples"),
    ]
    try:
        counts = runner.run_graph(build, beam_options, stages)
    except runner.RunFailed:
        # The last step fails when everything is there.
        if args.fail_on_drift and manifest.is_complete(args.output, draft.kind, draft.fingerprint, draft.settings, overwrite=False):
            print(report.audit(args.output, read_summary(args.output, runner.read_back(args.output, Manifest))))
            _fail_if_crossed(args)
        raise
    if counts is None:
        print("the graph is built; nothing has run")
        return
    read = 0
    if wanted:
        written = runner.read_back(wanted.directory, FeatureManifest)
        print(report.features(wanted.directory, written))
        read = 0 if wanted.complete else written.counts["examples"] + written.counts["rejected"]
    print(report.audit(args.output, read_summary(args.output, runner.read_back(args.output, Manifest))))
    print(report.done(started, read, counts))


def _fail_if_crossed(args: argparse.Namespace) -> None:
    summary = read_summary(args.output, runner.read_back(args.output, Manifest))
    if args.fail_on_drift and summary["crossed"]:
        raise runner.Crossed(told_crossed(args.output, summary))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
