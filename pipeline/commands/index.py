"""`tracin index`: a FAISS index over the vectors of a training set, for `tracin search`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.commands.export import PROJECTING, projection_config
from pipeline.flags import parser
from pipeline.running import runner
from pipeline.terminal import report
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors import faiss_index
from transforms.vectors.files import read_projection
from transforms.vectors.index import BuildIndex
from transforms.vectors.projections import methods


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("index", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("index", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    faiss_index.require()
    train = manifests.read(args.train_features, FeatureManifest, "train_features")
    index = BuildIndex(
        FeatureSet(args.train_features, train),
        projection_config(args),
        args.output,
        args.kind,
        args.memory_gb,
        runner.processes_per_machine(beam_options),
        args.overwrite,
    )
    if manifests.is_complete(args.output, index.draft, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        return
    filesystems.check_writable(args.output)

    def build(pipeline: beam.Pipeline) -> None:
        sets = pipeline | "ReadFeatures" >> ReadFeatureSet(
            args.train_features, "train_features", train.fingerprint
        )  # FeatureSet
        sets | "BuildIndex" >> index  # Manifest

    stages = PROJECTING if args.projection in methods.FITTED else PROJECTING[-1:]
    if runner.run_graph(build, beam_options, stages) is None:
        print("the graph is built; nothing has run")
        return
    written = runner.read_back_kind(args.output, "index")
    print(report.index(args.output, written, read_projection(args.output, written)))
    print(report.done(started))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
