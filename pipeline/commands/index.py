"""`tracin index`: a FAISS index over the vectors of a training set, for `tracin search`."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.commands.export import (
    PROJECTING,
    check_not_empty,
    projection_settings,
    projection_wanted,
)
from pipeline.flags import parser
from pipeline.running import runner
from pipeline.terminal import report
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors import faiss_index, projections
from transforms.vectors.files import WriteVectors, read_projection
from transforms.vectors.fit import FitProjection
from transforms.vectors.index import build_index, rows_per_index


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("index", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("index", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    faiss_index.require()
    train = manifests.read(args.train_features, FeatureManifest, "train_features")
    check_not_empty(train, "train_features", args.train_features)
    wanted = projection_wanted(args, train, "train_features", args.normalize)
    settings = {
        **projection_settings(wanted, args.normalize),
        "train_features": train.fingerprint,
        "model": train.model_fingerprint,
        "kind": args.kind,
        "memory_gb": args.memory_gb,
    }
    draft = Manifest("index", manifests.fingerprint(settings), settings, (), {})
    if manifests.is_complete(args.output, draft, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        return
    filesystems.check_writable(args.output)
    memory = (
        args.memory_gb * 1e9 / (runner.processes_per_machine(beam_options) or os.cpu_count() or 1)
    )

    rows = functools.partial(rows_per_index, memory_bytes=memory)
    build_one = functools.partial(
        build_index, directory=args.output, kind=args.kind, seed=args.seed
    )

    def build(pipeline: beam.Pipeline) -> None:
        sets = pipeline | "ReadFeatures" >> ReadFeatureSet(
            args.train_features, "train_features", train.fingerprint
        )  # FeatureSet
        projection = sets | "FitProjection" >> FitProjection(wanted)  # Projection
        (sets, projection) | "BuildIndex" >> WriteVectors(
            args.output, draft, args.overwrite, rows, build_one
        )  # Manifest

    if (
        runner.run_graph(
            build,
            beam_options,
            PROJECTING if args.projection in projections.FITTED else PROJECTING[-1:],
        )
        is None
    ):
        print("the graph is built; nothing has run")
        return
    written = runner.read_back_kind(args.output, "index")
    print(report.index(args.output, written, read_projection(args.output, written)))
    print(report.done(started))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
