"""`tracin audit`: which labels of a training set are likely wrong, from its feature set."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline import options, progress, report, runner
from pipeline.score import read_set
from transforms import audits, files, manifest
from transforms.audit_files import SuspectsWanted, WriteAudit, read_summary
from transforms.audits import AuditLabels
from transforms.manifest import FeatureManifest, Manifest, usable_rates


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("audit", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = options.parse("audit", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    found = manifest.read(args.features, FeatureManifest, "features")
    audits.check_labels(found, "features", args.features)
    rates = usable_rates(found, args.learning_rates)
    settings: dict[str, Any] = {
        "features": found.fingerprint,
        "learning_rates": list(rates),
        "min_suspicion": args.min_suspicion,
        "max_suspects_per_class": args.max_suspects_per_class,
    }
    draft = Manifest("audit", manifest.fingerprint(settings), settings, (), {})
    if manifest.is_complete(args.output, draft.kind, draft.fingerprint, draft.settings, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        return
    files.check_writable(args.output)
    wanted = SuspectsWanted(args.min_suspicion, args.max_suspects_per_class)

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "NameSet" >> beam.Create([args.features])  # directory
            | "ReadManifest" >> beam.Map(read_set, "features", found.fingerprint)  # FeatureSet
            | "AuditLabels" >> AuditLabels(rates)  # (AuditedExamples, Judgement)
            | "WriteAudit" >> WriteAudit(args.output, draft, audits.classes(found), wanted, args.overwrite)  # Manifest
        )

    stages = [
        progress.Stage("Sum activations", "examples-summed", found.examples, "examples-summed", "examples"),
        progress.Stage("Judge labels", "examples-audited", found.examples, "examples-audited", "examples"),
    ]
    if runner.run_graph(build, beam_options, stages) is None:
        print("the graph is built; nothing has run")
        return
    print(report.audit(args.output, read_summary(args.output, runner.read_back(args.output, Manifest))))
    print(report.done(started))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
