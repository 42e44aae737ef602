"""`tracin audit`: which labels of a training set are likely wrong, from its feature set, which is extracted first where it is not there."""

from __future__ import annotations

import posixpath
import sys
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline import inputs, options, progress, report, runner
from pipeline.features import extraction, feature_set
from pipeline.score import read_set
from transforms import audits, files, manifest
from transforms.audit_files import SuspectsWanted, WriteAudit, read_summary
from transforms.audits import AuditLabels
from transforms.errors import InputError
from transforms.manifest import FeatureManifest, Manifest, usable_rates


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
    settings: dict[str, Any] = {
        "features": found.fingerprint,
        "learning_rates": list(rates),
        "min_suspicion": args.min_suspicion,
        "max_suspects_per_class": args.max_suspects_per_class,
        "previous": previous and previous.fingerprint,
    }
    draft = Manifest("audit", manifest.fingerprint(settings), settings, (), {})
    if manifest.is_complete(args.output, draft.kind, draft.fingerprint, draft.settings, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
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
            | "AuditLabels" >> AuditLabels(rates)  # (AuditedExamples, Judgement)
            | "WriteAudit"
            >> WriteAudit(
                args.output, draft, audits.classes(found), suspects, args.overwrite, (args.previous, previous) if previous else None
            )  # Manifest
        )

    stages = [
        *(extraction([wanted]) if wanted and not wanted.complete else []),
        progress.Stage("Sum activations", "examples-summed", "examples-planned", "examples-summed", "examples"),
        progress.Stage("Judge labels", "examples-audited", "examples-planned", "examples-audited", "examples"),
    ]
    counts = runner.run_graph(build, beam_options, stages)
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


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
