"""`tracin index`: a FAISS index over the vectors of a training set, for `tracin search`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam

from pipeline.preparation.configs import from_flags
from pipeline.running.beam_options import processes_per_machine
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.outcomes import read_back_kind
from pipeline.running.progress import FITTING, PROJECTING, Stage
from pipeline.terminal.run import done
from pipeline.terminal.vectors import index
from transforms.storage.feature_set import FeatureSet
from transforms.storage.read_feature_set import ReadFeatureSet, read_feature_set
from transforms.vectors import faiss_index
from transforms.vectors.config import ProjectionConfig
from transforms.vectors.files import read_projection
from transforms.vectors.index import BuildIndex
from transforms.vectors.projections import methods


@dataclasses.dataclass(frozen=True)
class Index(GraphCommand):
    """An index over the vectors of a feature set."""

    name: ClassVar[str] = "index"
    train: FeatureSet
    index: BuildIndex

    @classmethod
    def prepare(cls, invocation: Invocation) -> Index:
        """Reads the manifest and checks the projection."""
        args = invocation.args
        faiss_index.require()
        train = read_feature_set(args.train_features, "train_features")
        build_index = BuildIndex(
            train,
            from_flags(ProjectionConfig, args),
            args.output,
            args.kind,
            args.memory_gb,
            processes_per_machine(invocation.beam),
            args.overwrite,
        )
        return cls(invocation, build_index.draft, None, train, build_index)

    def build(self, pipeline: beam.Pipeline) -> None:
        """Reads the feature set and builds its index."""
        sets = pipeline | "ReadFeatures" >> ReadFeatureSet(
            self.train.directory, "train_features", self.train.manifest.fingerprint
        )  # FeatureSet
        sets | "BuildIndex" >> self.index  # Manifest

    def stages(self) -> Sequence[Stage]:
        """Returns the stages of projecting, with those of fitting if the vectors are fitted."""
        fits = self.invocation.args.projection in methods.FITTED
        return [*(FITTING if fits else ()), PROJECTING]

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints how many vectors the index holds, and how they were made."""
        manifest = read_back_kind(self.output, "index")
        print(index(self.output, manifest, read_projection(self.output, manifest)))
        print(done(self.invocation.started))


run = Index.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
