"""`tracin plan`: what `tracin score` with the same flags would cost, before anything is started.

Nothing is run or written. TensorFlow is imported only to build a job for Dataflow.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import ClassVar

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions, TestOptions

from pipeline.flags import dataflow
from pipeline.preparation import planning
from pipeline.preparation.configs import from_flags
from pipeline.running.beam_options import processes_per_machine
from pipeline.running.command import Command, Invocation
from pipeline.running.graph import run_graph
from pipeline.terminal.planned import Plan, table
from transforms.influence.config import ScoringConfig
from transforms.storage.manifests import FeatureManifest


@dataclasses.dataclass(frozen=True)
class PlanScore(Command):
    """The cost of a scoring run, and its job if it is one of Dataflow's."""

    name: ClassVar[str] = "plan"
    invocation: Invocation
    plan: Plan

    @classmethod
    def prepare(cls, invocation: Invocation) -> PlanScore:
        """Predicts the cost."""
        processes = processes_per_machine(invocation.beam)
        return cls(invocation, planning.plan(invocation.args, processes))

    def execute(self) -> None:
        """Prints the plan, and the job."""
        if self.invocation.args.json:
            print(json.dumps(dataclasses.asdict(self.plan)))
            return
        print(table(self.plan))
        options = self.invocation.beam
        if options.view_as(StandardOptions).runner == dataflow.RUNNER:
            options.view_as(TestOptions).dry_run = True
            print()
            run_graph(self.build, options, [])

    def build(self, pipeline: beam.Pipeline) -> None:
        """Adds the steps of the planned run, as far as its shape goes: they carry nothing of
        feature sets that do not exist yet.
        """
        from pipeline.preparation import scoring
        from pipeline.running import output_table
        from transforms.storage.read_feature_set import ReadFeatureSet

        args, options = self.invocation.args, self.invocation.beam
        test, train = (
            pipeline
            | f"Read{name}Features"
            >> ReadFeatureSet(directory or "", f"{name.lower()}_features")  # FeatureSet
            for name, directory in (("Test", args.test_features), ("Train", args.train_features))
        )
        shape = (args.outputs or 1, args.units or 1)
        manifest = FeatureManifest("features", "", {}, (), {}, "", "class", *shape, (), (), (), {})
        config, processes = from_flags(ScoringConfig, args), processes_per_machine(options)
        rows = output_table.requested(args, options, scoring.influence_rows(manifest, config))
        scoring.write_influence(
            (test, train), args.output or "output", config, processes, overwrite=False, table=rows
        )


run = PlanScore.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
