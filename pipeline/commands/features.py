"""`tracin features`: the features of a set of examples, extracted once and scored many times."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam

from pipeline.preparation import extraction
from pipeline.preparation.configs import from_flags
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.progress import Stage
from pipeline.terminal.run import done
from transforms.extraction.load_model import load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.models.config import ModelConfig
from transforms.storage import manifests
from transforms.storage.manifests import FeatureManifest


@dataclasses.dataclass(frozen=True)
class Features(GraphCommand):
    """Stage 1 alone."""

    name: ClassVar[str] = "features"
    extract: ExtractFeatures

    @classmethod
    def prepare(cls, invocation: Invocation) -> Features:
        """Loads the checkpoints and finds the examples."""
        args = invocation.args
        model = load_model(from_flags(ModelConfig, args))
        extract = extraction.extraction(
            args, model, args.output, labels=args.labels, base=args.base
        )
        return cls(invocation, extract.draft, None, extract)

    def is_complete(self) -> bool:
        """Whether the feature set is there."""
        return self.extract.complete

    def skip(self) -> None:
        """Says so, and that learning rates given with other ones there change nothing."""
        super().skip()
        rates = self.invocation.args.learning_rates
        committed = manifests.read(self.output, FeatureManifest, "output")
        if rates and rates != committed.learning_rates:
            print(
                "learning rates are no part of the features: pass --learning_rates to tracin score"
            )

    def announce(self) -> None:
        """Prints the checkpoints."""
        extraction.announce(self.extract.model, {})

    def build(self, pipeline: beam.Pipeline) -> None:
        """Extracts the feature set."""
        pipeline | "ExtractFeatures" >> self.extract  # FeatureSet

    def stages(self) -> Sequence[Stage]:
        """Returns the stages of the extraction."""
        return extraction.stages([self.extract])

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints what the feature set holds."""
        _, read = extraction.summarise({"features": self.extract})
        print(done(self.invocation.started, read, counts))


run = Features.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
