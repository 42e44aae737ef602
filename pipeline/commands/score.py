"""`tracin score`: the strongest proponents and opponents of each test example, from two feature
sets.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam

from pipeline.preparation import scoring
from pipeline.preparation.configs import from_flags
from pipeline.running import output_table
from pipeline.running.beam_options import processes_per_machine
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.loading import load_tensorflow
from pipeline.running.outcomes import read_back
from pipeline.running.progress import SCORING, Stage
from pipeline.terminal.influence import influence, skipped
from pipeline.terminal.run import done
from transforms.influence.config import ScoringConfig
from transforms.influence.plan import check_memory, check_sets, influence_draft, largest_file
from transforms.reports.class_names import read_class_names
from transforms.reports.previews import preview_format
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import read_feature_set


@dataclasses.dataclass(frozen=True)
class Score(GraphCommand):
    """Stage 2 alone."""

    name: ClassVar[str] = "score"
    test: FeatureSet
    train: FeatureSet
    config: ScoringConfig
    processes: int | None
    class_names: tuple[str, ...] | None

    @classmethod
    def prepare(cls, invocation: Invocation) -> Score:
        """Reads both manifests and checks that the sets fit each other and the memory."""
        args = invocation.args
        output_table.check_credentials(args)
        train = read_feature_set(args.train_features, "train_features")
        test = read_feature_set(args.test_features, "test_features")
        config, processes = from_flags(ScoringConfig, args), processes_per_machine(invocation.beam)
        check_sets(test, train, config)
        names = read_class_names(args.class_names, train.manifest)
        draft = influence_draft(test.manifest, train.manifest, config, names)
        check_memory(config, train.shape, processes, largest_file(test.manifest, train.manifest))
        rows = scoring.influence_rows(train.manifest, config)
        table = output_table.requested(args, invocation.beam, rows)
        class_names = tuple(names) if names else None
        return cls(invocation, draft, table, test, train, config, processes, class_names)

    def build(self, pipeline: beam.Pipeline) -> None:
        """Reads both feature sets, scores their pairs and writes the result."""
        if any(preview_format(side.manifest) for side in (self.test, self.train)):
            load_tensorflow()
        sets = scoring.read_sets(pipeline, self.test, self.train)  # FeatureSet, FeatureSet
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
        """Returns the stage of scoring."""
        return [SCORING]

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints what the result holds, and the fate of all pairs."""
        print(influence(self.output, read_back(self.output, Manifest)))
        output_table.summarise(self.table)
        pairs = scoring.pairs_of(self.test.manifest, self.train.manifest, self.config)
        print(skipped(counts, pairs))
        print(done(self.invocation.started, scored=pairs))


run = Score.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
