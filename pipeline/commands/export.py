"""`tracin export`: the features of a set as vectors for nearest-neighbour libraries."""

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
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors.config import ProjectionConfig
from transforms.vectors.files import ExportVectors, read_projection
from transforms.vectors.projections import methods

PROJECTING = (
    progress.Stage(
        "Sum moments", "examples-summed", "examples-to-fit", "examples-summed", "examples"
    ),
    progress.Stage(
        "Measure energies", "examples-measured", "examples-to-fit", "examples-measured", "examples"
    ),
    progress.Stage(
        "Project", "examples-projected", "examples-planned", "examples-projected", "examples"
    ),
)


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("export", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("export", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    manifest = manifests.read(args.features, FeatureManifest, "features")
    export = ExportVectors(
        FeatureSet(args.features, manifest), projection_config(args), args.output, args.overwrite
    )
    if manifests.is_complete(args.output, export.draft, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        return
    filesystems.check_writable(args.output)

    def build(pipeline: beam.Pipeline) -> None:
        sets = pipeline | "ReadFeatures" >> ReadFeatureSet(
            args.features, "features", manifest.fingerprint
        )  # FeatureSet
        sets | "ExportVectors" >> export  # Manifest

    fits = export.plan is not None and args.projection in methods.FITTED
    if runner.run_graph(build, beam_options, PROJECTING if fits else PROJECTING[-1:]) is None:
        print("the graph is built; nothing has run")
        return
    written = runner.read_back_kind(args.output, "vectors")
    print(report.vectors(args.output, written, read_projection(args.output, written)))
    print(report.done(started))


def projection_config(args: argparse.Namespace) -> ProjectionConfig:
    """Returns the settings of vectors that the flags name."""
    names = {field.name for field in dataclasses.fields(ProjectionConfig)}
    return ProjectionConfig(**{name: value for name, value in vars(args).items() if name in names})


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
