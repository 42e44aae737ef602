"""`tracin search`: each test example's proponents and opponents by an index of the training set,
scored exactly.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import apache_beam as beam

from pipeline.preparation import scoring
from pipeline.preparation.configs import from_flags
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.outcomes import read_back
from pipeline.running.progress import SEARCHING, Stage
from pipeline.terminal.influence import influence, recall
from pipeline.terminal.run import done
from transforms.influence.config import InfluenceReportConfig, ScoringConfig
from transforms.influence.plan import influence_draft
from transforms.influence.write import WriteInfluence
from transforms.reports.class_names import read_class_names
from transforms.storage import filesystems
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import read_feature_set
from transforms.vectors import faiss_index
from transforms.vectors.config import SearchConfig
from transforms.vectors.recall import RECALL_FILE, MeasureRecall, report_note
from transforms.vectors.search import SearchIndex, SearchPlan


@dataclasses.dataclass(frozen=True)
class Search(GraphCommand):
    """Stage 2 by an index."""

    name: ClassVar[str] = "search"
    test: FeatureSet
    train: FeatureSet
    plan: SearchPlan
    config: ScoringConfig
    settings: Mapping[str, Any]
    class_names: tuple[str, ...] | None

    @classmethod
    def prepare(cls, invocation: Invocation) -> Search:
        """Reads the manifests and checks that index and sets fit each other."""
        args = invocation.args
        faiss_index.require()
        train = read_feature_set(args.train_features, "train_features")
        test = read_feature_set(args.test_features, "test_features")
        plan = SearchPlan.of(from_flags(SearchConfig, args), test, train)
        names = read_class_names(args.class_names, train.manifest)
        settings = {**plan.settings, "class_names": names}
        config = ScoringConfig(args.k, plan.scoring.normalize, plan.scoring.learning_rates)
        draft = influence_draft(test.manifest, train.manifest, config, names, settings)
        class_names = tuple(names) if names else None
        return cls(invocation, draft, None, test, train, plan, config, settings, class_names)

    def build(self, pipeline: beam.Pipeline) -> None:
        """Searches the index, scores its candidates, measures the recall, writes the result."""
        sets = scoring.read_sets(pipeline, self.test, self.train)  # FeatureSet, FeatureSet
        rows = sets | "SearchIndex" >> SearchIndex(self.plan)  # (row, ScoredBlock)
        beside = (
            (sets, rows) | "MeasureRecall" >> MeasureRecall(self.plan) if self.plan.sample else None
        )  # (name, content)
        write = WriteInfluence(
            self.output,
            self.config,
            InfluenceReportConfig(self.class_names, (report_note(self.plan),)),
            self.invocation.args.overwrite,
            self.settings,
            beside,
        )
        (rows, *sets) | "WriteInfluence" >> write  # Manifest

    def stages(self) -> Sequence[Stage]:
        """Returns the stage of searching."""
        return [SEARCHING]

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints what the result holds, and the measured recall."""
        manifest = read_back(self.output, Manifest)
        print(influence(self.output, manifest))
        file = next((file for file in manifest.files if file.name == RECALL_FILE), None)
        print(recall(filesystems.read_verified(self.output, file) if file else None))
        print(done(self.invocation.started))


run = Search.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
