"""`tracin export`: the features of a set as vectors for nearest-neighbour libraries."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam

from pipeline.preparation.configs import from_flags
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.outcomes import read_back_kind
from pipeline.running.progress import FITTING, PROJECTING, Stage
from pipeline.terminal.run import done
from pipeline.terminal.vectors import vectors
from transforms.storage.feature_set import FeatureSet
from transforms.storage.read_feature_set import ReadFeatureSet, read_feature_set
from transforms.vectors.config import ProjectionConfig
from transforms.vectors.files import ExportVectors, read_projection
from transforms.vectors.projections import methods


@dataclasses.dataclass(frozen=True)
class Export(GraphCommand):
    """Vectors of a feature set, in files."""

    name: ClassVar[str] = "export"
    features: FeatureSet
    export: ExportVectors

    @classmethod
    def prepare(cls, invocation: Invocation) -> Export:
        """Reads the manifest and checks the projection."""
        args = invocation.args
        features = read_feature_set(args.features, "features")
        config = from_flags(ProjectionConfig, args)
        export = ExportVectors(features, config, args.output, args.overwrite)
        return cls(invocation, export.draft, None, features, export)

    def build(self, pipeline: beam.Pipeline) -> None:
        """Reads the feature set and writes its vectors."""
        sets = pipeline | "ReadFeatures" >> ReadFeatureSet(
            self.features.directory, "features", self.features.manifest.fingerprint
        )  # FeatureSet
        sets | "ExportVectors" >> self.export  # Manifest

    def stages(self) -> Sequence[Stage]:
        """Returns the stages of projecting, with those of fitting if the vectors are fitted."""
        projection = self.invocation.args.projection
        fits = self.export.plan is not None and projection in methods.FITTED
        return [*(FITTING if fits else ()), PROJECTING]

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints how many vectors there are, and how they were made."""
        manifest = read_back_kind(self.output, "vectors")
        print(vectors(self.output, manifest, read_projection(self.output, manifest)))
        print(done(self.invocation.started))


run = Export.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
