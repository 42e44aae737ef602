"""`tracin audit`: which labels of a training set are likely wrong, from its feature set, which is
extracted first where it is not there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam

from pipeline.preparation import extraction
from pipeline.preparation.configs import from_flags
from pipeline.running import output_table
from pipeline.running.command import Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.outcomes import Crossed, read_back
from pipeline.running.progress import AUDITING, Stage
from pipeline.terminal.audit import audit
from pipeline.terminal.run import done
from transforms.audit.config import (
    AuditConfig,
    check_not_empty,
    check_test_not_empty,
    plan_audit,
)
from transforms.audit.judge import AuditLabels
from transforms.audit.rows import table_rows
from transforms.audit.summary import describe_crossed, read_summary
from transforms.audit.write import WriteAudit
from transforms.extraction.load_model import LoadedModel, load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.models.config import ModelConfig
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet, read_feature_set


@dataclasses.dataclass(frozen=True)
class Audit(GraphCommand):
    """The audit of a training set, perhaps with a test set.

    Attributes:
        config: the settings.
        train, test: both sets; of one that is extracted, its examples and the draft of its
            manifest.
        extractions: the sets that are extracted, by the names of their directories below the
            output.
    """

    name: ClassVar[str] = "audit"
    config: AuditConfig
    train: FeatureSet
    test: FeatureSet | None
    extractions: Mapping[str, ExtractFeatures]

    @classmethod
    def prepare(cls, invocation: Invocation) -> Audit:
        """Reads or prepares the feature sets, and plans the audit."""
        args = invocation.args
        output_table.check_credentials(args)
        config = from_flags(AuditConfig, args)
        extractions = {} if args.features else _extractions(invocation)
        if args.features:
            train = read_feature_set(args.features, "features")
            check_not_empty(train)
        else:
            train = FeatureSet(args.examples, extractions["features"].draft)
        test = None
        if args.test_features:
            test = read_feature_set(args.test_features, "test_features")
            check_test_not_empty(test)
        elif args.test_examples:
            test = FeatureSet(args.test_examples, extractions["test_features"].draft)
        plan = plan_audit(config, args.output, train, test)
        # The manifest of a set that is there already may have other rates.
        config = dataclasses.replace(config, learning_rates=plan.learning_rates)
        rows = table_rows(config.min_suspicion, test is not None)
        table = output_table.requested(args, invocation.beam, rows)
        return cls(invocation, plan.draft, table, config, train, test, extractions)

    def skip(self) -> None:
        """Does the same as after a run: a crossed threshold stays crossed."""
        super().skip()
        self._fail_if_crossed()

    def announce(self) -> None:
        """Prints the checkpoints, and which feature sets are there already."""
        if self.extractions:
            extraction.announce(self.extractions["features"].model, self.extractions)

    def build(self, pipeline: beam.Pipeline) -> None:
        """Reads or extracts the feature sets, audits the labels and writes the result."""
        sets = {"train": self._set(pipeline, "Train", "features", self.train)}
        if self.test:
            sets["test"] = self._set(pipeline, "Test", "test_features", self.test)
        (
            sets
            | "AuditLabels" >> AuditLabels(self.config, self.output)  # weighed labels, duplicates
            | "WriteAudit" >> WriteAudit(self.config, self.output, self.table)  # Manifest
        )

    def _set(
        self, pipeline: beam.Pipeline, name: str, field: str, feature_set: FeatureSet
    ) -> beam.PCollection:
        """Adds a set that is extracted, or was named, to a graph: FeatureSet (one)."""
        if field in self.extractions:
            return pipeline | f"Extract{name}Features" >> self.extractions[field]
        return pipeline | f"Read{name}Features" >> ReadFeatureSet(
            feature_set.directory, field, feature_set.manifest.fingerprint
        )

    def stages(self) -> Sequence[Stage]:
        """Returns the stages of extraction and of the audit."""
        return [*extraction.stages(self.extractions.values()), *AUDITING]

    def explain_failure(self) -> None:
        """Summarises an audit that is whole and fails, since a threshold is crossed.

        Raises:
            Crossed: one is, and the rows are where they are to be.
        """
        complete = self.config.fail_on_drift and manifests.is_complete(
            self.output, self.draft, overwrite=False
        )
        if complete and output_table.holds(self.table, self.invocation.beam):
            self._print_audit()
            self._fail_if_crossed()

    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints what was extracted, and what the audit found."""
        _, read = extraction.summarise(self.extractions)
        self._print_audit()
        output_table.summarise(self.table)
        print(done(self.invocation.started, read, counts))

    def _print_audit(self) -> None:
        summary = read_summary(self.output, read_back(self.output, Manifest))
        print(audit(self.output, summary))

    def _fail_if_crossed(self) -> None:
        summary = read_summary(self.output, read_back(self.output, Manifest))
        if self.config.fail_on_drift and summary["crossed"]:
            raise Crossed(describe_crossed(self.output, summary))


def _extractions(invocation: Invocation) -> dict[str, ExtractFeatures]:
    """Prepares the feature sets of the examples of the flags."""
    args = invocation.args
    model = load_model(from_flags(ModelConfig, args), rates_needed=True)
    extractions = {"features": _extraction(invocation, model, "examples", "features")}
    if args.test_examples:
        # The keys of slices are kept of the test examples, whether or not training examples have
        # them.
        extractions["test_features"] = _extraction(
            invocation, model, "test_examples", "test_features", args.slice_keys
        )
    return extractions


def _extraction(
    invocation: Invocation,
    model: LoadedModel,
    field: str,
    name: str,
    slice_keys: tuple[str, ...] = (),
) -> ExtractFeatures:
    args = invocation.args
    return extraction.extraction(
        args,
        model,
        filesystems.join(args.output, name),
        field,
        base=args.base and filesystems.join(args.base, name),
        slice_keys=slice_keys,
    )


run = Audit.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
