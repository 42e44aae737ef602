"""`tracin features`: the features of a set of examples, extracted once and scored many times."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from pipeline.flags import parser
from pipeline.preparation import configs
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.extraction.load_model import load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("features", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("features", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    model = load_model(configs.model_config(args))
    extract = configs.extraction(args, model, args.output, labels=args.labels, base=args.base)
    if extract.complete:
        print(f"{args.output} is complete with the same settings: nothing to do")
        if (
            args.learning_rates
            and args.learning_rates
            != manifests.read(args.output, FeatureManifest, "output").learning_rates
        ):
            print(
                "learning rates are no part of the features: pass --learning_rates to tracin score"
            )
        return
    filesystems.check_writable(args.output)
    print(report.checkpoints(model))
    counts = runner.run_graph(
        lambda pipeline: pipeline | "ExtractFeatures" >> extract,
        beam_options,
        extraction([extract]),
    )
    if counts is None:
        print("the graph is built; nothing has run")
        return
    written = runner.read_back(args.output, FeatureManifest)
    print(report.features(args.output, written))
    print(report.done(started, written.counts["examples"] + written.counts["rejected"], counts))


def extraction(wanted: Sequence[ExtractFeatures]) -> list[progress.Stage]:
    """How the extraction of some sets is shown."""
    total = sum(one.bytes_to_read for one in wanted)
    compared = sum(one.bytes_to_read for one in wanted if one.stage.base)
    stages = (
        [
            progress.Stage(
                "Compare examples",
                "example-bytes-compared",
                compared,
                "examples-compared",
                "examples",
            )
        ]
        if compared
        else []
    )
    return [
        *stages,
        progress.Stage(
            "Extract features", "example-bytes-read", total, "examples-extracted", "examples"
        ),
    ]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
