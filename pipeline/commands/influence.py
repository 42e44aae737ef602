"""`tracin influence`: both stages in one graph, from examples and checkpoints to each test
example's proponents and opponents.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam

from pipeline.preparation import extraction, scoring
from pipeline.preparation.configs import from_flags
from pipeline.running import output_table
from pipeline.running.beam_options import processes_per_machine
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.outcomes import read_back
from pipeline.running.progress import SCORING, Stage
from pipeline.terminal.influence import influence, skipped
from pipeline.terminal.run import done
from transforms.core.shapes import Shape
from transforms.extraction.load_model import load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.influence.config import ScoringConfig
from transforms.influence.plan import check_memory, influence_draft
from transforms.models.config import ModelConfig
from transforms.reports.class_names import read_class_names
from transforms.storage import filesystems
from transforms.storage.manifests import Manifest


@dataclasses.dataclass(frozen=True)
class Influence(GraphCommand):
    """Stages 1 and 2."""

    name: ClassVar[str] = "influence"
    test: ExtractFeatures
    train: ExtractFeatures
    config: ScoringConfig
    processes: int | None
    class_names: tuple[str, ...] | None

    @classmethod
    def prepare(cls, invocation: Invocation) -> Influence:
        """Loads the checkpoints, finds both sets of examples and checks the memory."""
        args = invocation.args
        output_table.check_credentials(args)
        model = load_model(from_flags(ModelConfig, args), rates_needed=True)
        test, train = (
            extraction.extraction(
                args,
                model,
                filesystems.join(args.output, f"{name}_features"),
                f"{name}_examples",
                labels,
                args.base and filesystems.join(args.base, f"{name}_features"),
            )
            for name, labels in (("test", args.test_labels), ("train", args.train_labels))
        )
        # Named, because a feature set that is already there may have been written with other rates
        # in its manifest.
        config = dataclasses.replace(
            from_flags(ScoringConfig, args), learning_rates=model.usable_rates()
        )
        processes = processes_per_machine(invocation.beam)
        names = read_class_names(args.class_names, train.draft)
        draft = influence_draft(test.draft, train.draft, config, names)
        shape = Shape(len(train.draft.checkpoints), train.draft.outputs, train.draft.units)
        check_memory(config, shape, processes)
        rows = scoring.influence_rows(train.draft, config)
        table = output_table.requested(args, invocation.beam, rows)
        class_names = tuple(names) if names else None
        return cls(invocation, draft, table, test, train, config, processes, class_names)

    @property
    def _extractions(self) -> Mapping[str, ExtractFeatures]:
        return {"test_features": self.test, "train_features": self.train}

    def announce(self) -> None:
        """Prints the checkpoints, and which feature sets are there already."""
        extraction.announce(self.train.model, self._extractions)

    def build(self, pipeline: beam.Pipeline) -> None:
        """Extracts both feature sets, scores their pairs and writes the result."""
        sets = (
            pipeline | "ExtractTestFeatures" >> self.test,
            pipeline | "ExtractTrainFeatures" >> self.train,
        )  # FeatureSet, FeatureSet
        scoring.write_influence(
            sets,
            self.output,
            self.config,
            self.processes,
            self.invocation.args.overwrite,
            self.class_names,
            self.table,
        )

    def stages(self) -> Sequence[Stage]:
        """Returns the stages of extraction and scoring."""
        return [*extraction.stages(self._extractions.values()), SCORING]

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints what was extracted, what the result holds, and the fate of all pairs."""
        (test, train), read = extraction.summarise(self._extractions)
        print(influence(self.output, read_back(self.output, Manifest)))
        output_table.summarise(self.table)
        pairs = scoring.pairs_of(test, train, self.config)
        print(skipped(counts, pairs))
        print(done(self.invocation.started, read, counts, scored=pairs))


run = Influence.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
