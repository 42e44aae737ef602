"""The audit of a training set: the evidence that all other examples give on each label.

The activations of all examples are summed first. Then each record is read once more and its label
is judged. Sums and a few numbers for each example travel between workers, never features. Sums are
added in an order that the feature set alone decides, so runners and their bundles make no
difference.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.audit import rows, suspicion
from transforms.audit.config import (
    AuditConfig,
    AuditPlan,
    AuditTuning,
    check_not_empty,
    class_count,
    plan_audit,
)
from transforms.audit.rows import AuditedExamples
from transforms.audit.slices import GradientSums, SumGradients
from transforms.audit.suspicion import LabelCounts, LeaveOneOut, Moments, Noise
from transforms.core.shapes import Span
from transforms.duplicates.directions import Directions
from transforms.duplicates.find import FindDuplicates
from transforms.duplicates.signatures import Signatures
from transforms.runtime import counters
from transforms.scoring.influence import self_influence
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record

_SIGNATURES, _COUNTS = "signatures", "counts"


def plan_groups(features: FeatureSet, tuning: AuditTuning) -> Iterator[tuple[int, int, int]]:
    """Yields runs of files whose sums are made together: (group, first file, file after the last).

    Raises:
        InputError: the set is empty.
    """
    check_not_empty(features)
    manifest = features.manifest
    counters.add("examples-planned", manifest.examples)
    units = manifest.units + 1
    size = 8 * len(manifest.checkpoints) * units * (units + class_count(manifest))
    count = max(1, min(len(manifest.files), tuning.groups, tuning.moment_bytes // size))
    borders = [len(manifest.files) * i // count for i in range(count + 1)]
    logging.getLogger(__name__).info("%d examples in %d groups", manifest.examples, count)
    yield from zip(range(count), borders[:-1], borders[1:], strict=True)


def sum_moments(
    group: tuple[int, int, int], features: FeatureSet
) -> Iterator[tuple[int, tuple[int, Moments]]]:
    """Sums the moments of a group of files at each checkpoint: (checkpoint, (group, Moments))."""
    manifest = features.manifest
    number, start, stop = group
    has_bias, classes = _has_bias(manifest), class_count(manifest)
    totals = [
        suspicion.no_moments(manifest.units + (not has_bias), classes) for _ in manifest.checkpoints
    ]
    for file in range(start, stop):
        part = features.read([Span(file, 0, manifest.files[file].count)])
        for t in range(len(totals)):
            totals[t] += suspicion.moments(
                suspicion.with_bias(part.activations[:, t], has_bias), part.labels[:, 0], classes
            )
        counters.add("examples-summed", len(part))
    for t, total in enumerate(totals):
        yield t, (number, total)


def fit(grouped: tuple[int, Iterable[tuple[int, Moments]]]) -> tuple[int, LeaveOneOut]:
    """Fits the classifiers of a checkpoint to the moments of all groups."""
    t, parts = grouped
    first, *others = (moments for _, moments in sorted(parts, key=lambda part: part[0]))
    for moments in others:
        first += moments
    return t, LeaveOneOut.fit(first)


def weigh(
    file: int,
    features: FeatureSet,
    plan: AuditPlan,
    directory: str,
    fitted: Sequence[tuple[int, LeaveOneOut]],
    tests: Sequence[GradientSums],
) -> Iterator[Any]:
    """Reads a feature file, and stores its audited examples and the evidence on their labels in
    `directory`.

    Yields the PendingExamples, and Signatures and LabelCounts as tagged outputs. `tests` holds the
    sums of the test set's gradients, or nothing.
    """
    manifest = features.manifest
    payloads = features.payloads(Span(file, 0, manifest.files[file].count))
    part = features.decode(payloads)
    labels = part.labels[:, 0]
    classifiers = _in_order(fitted)
    activations = [
        suspicion.with_bias(part.activations[:, t], _has_bias(manifest))
        for t in range(len(classifiers))
    ]
    counters.add("examples-audited", len(part))
    yield beam.pvalue.TaggedOutput(
        _SIGNATURES, Signatures.of(file, part.activations, labels, directions_of(classifiers))
    )
    evidence = suspicion.all_evidence(classifiers, activations, labels)
    yield beam.pvalue.TaggedOutput(_COUNTS, LabelCounts.of(evidence, labels, plan.classes))
    (test,) = tests or (None,)
    examples = AuditedExamples(
        file,
        part.example_ids,
        feature_record.packed_origins(payloads),
        labels,
        part.predictions[:, 0],
        part.probabilities,
        part.label_probabilities.astype(np.float64).mean(axis=1),
        self_influence(part, plan.learning_rates),
        test.influence(part, plan.learning_rates) if test else None,
        test.slices if test else None,
    )
    yield rows.write_pending(directory, examples, evidence)


def directions_of(fitted: Sequence[LeaveOneOut]) -> Directions:
    """Returns the directions of a set, whose centres follow from the class means of each
    checkpoint.
    """
    return Directions(
        np.stack([model.counts @ model.means / model.counts.sum() for model in fitted])
    )


def _in_order(fitted: Sequence[tuple[int, LeaveOneOut]]) -> list[LeaveOneOut]:
    return [model for _, model in sorted(fitted, key=lambda pair: pair[0])]


def _has_bias(manifest: FeatureManifest) -> bool:
    """Whether activations have a trailing 1."""
    return bool(manifest.settings["include_bias"])


def _noise(counts: LabelCounts, plan: AuditPlan) -> Noise:
    return suspicion.estimate_noise(counts.surest(plan.classes))


def _fit_classifiers(train: beam.PCollection, tuning: AuditTuning) -> beam.PCollection:
    """(checkpoint, LeaveOneOut) of each checkpoint of a FeatureSet (one)."""
    return (
        train
        | "PlanGroups" >> beam.FlatMap(plan_groups, tuning)
        # (group, first file, file after the last)
        | "SpreadGroups" >> beam.Reshuffle()  # (group, first file, file after the last)
        | "SumMoments" >> beam.FlatMap(sum_moments, beam.pvalue.AsSingleton(train))
        # (checkpoint, (group, Moments))
        | "GroupMoments" >> beam.GroupByKey()  # (checkpoint, [(group, Moments)])
        | "FitClassifiers" >> beam.Map(fit)  # (checkpoint, LeaveOneOut)
    )


@dataclasses.dataclass
class AuditLabels(beam.PTransform):
    """Weighs the evidence on every label of a training set, and finds duplicates.

    Input: a training set, FeatureSet (one); or a mapping of it as `train` and a test set as `test`,
    on which influence is measured. Both are checked first; see `config.plan_audit`.

    Output: a mapping for `WriteAudit`:

        train: FeatureSet (one)
        plan: AuditPlan (one)
        pending: PendingExamples of each feature file
        noise: Noise (one), with which the evidence is judged
        duplicates: Duplicates (one)
        directions: Directions (one), with which neighbours are found

    For example:

        config = AuditConfig(min_suspicion=0.8)
        with beam.Pipeline() as pipeline:
            (
                pipeline
                | ReadFeatureSet("features")
                | AuditLabels(config, "audit")
                | WriteAudit(config, "audit")
            )

    Attributes:
        config: settings.
        output: directory of the audit, where evidence waits as files.
        tuning: limits of memory and parallelism.
    """

    config: AuditConfig
    output: str
    tuning: AuditTuning = dataclasses.field(default_factory=AuditTuning)

    def _plan(self, _: None, train: FeatureSet, test: Sequence[FeatureSet]) -> AuditPlan:
        return plan_audit(self.config, self.output, train, *test)

    def expand(
        self, sets: beam.PCollection | Mapping[str, beam.PCollection]
    ) -> Mapping[str, beam.PCollection]:
        if not isinstance(sets, Mapping):
            sets = {"train": sets}
        train, test = sets["train"], sets.get("test")
        nothing = train.pipeline | "TestNothing" >> beam.Create([])
        start = train.pipeline | "StartAudit" >> beam.Create([None])
        features = beam.pvalue.AsSingleton(train)
        plan = start | "PlanAudit" >> beam.Map(
            self._plan, features, beam.pvalue.AsList(nothing if test is None else test)
        )  # AuditPlan
        fitted = beam.pvalue.AsList(_fit_classifiers(train, self.tuning))
        sums = (
            nothing
            if test is None
            else test | "SumGradients" >> SumGradients(self.config.slice_keys, self.tuning)
        )  # GradientSums
        weighed = (
            train
            | "ListFiles" >> beam.FlatMap(lambda train: range(len(train.manifest.files)))  # file
            | "SpreadFiles" >> beam.Reshuffle()  # file
            | "WeighLabels"
            >> beam.FlatMap(
                weigh,
                features,
                beam.pvalue.AsSingleton(plan),
                self.output,
                fitted,
                beam.pvalue.AsList(sums),
            ).with_outputs(_SIGNATURES, _COUNTS, main="pending")
            # PendingExamples, Signatures, LabelCounts
        )
        directions = start | "CentreActivations" >> beam.Map(
            lambda _, fitted: directions_of(_in_order(fitted)), fitted
        )  # Directions
        noise = (
            weighed[_COUNTS]
            | "AddLabelCounts" >> beam.CombineGlobally(LabelCounts.merge)  # LabelCounts
            | "EstimateNoise" >> beam.Map(_noise, beam.pvalue.AsSingleton(plan))  # Noise
        )
        duplicates = (
            (train, weighed[_SIGNATURES], directions)
            | "FindDuplicates"
            >> FindDuplicates(self.config.min_similarity, self.tuning.duplicates)  # Duplicates
        )
        return {
            "train": train,
            "plan": plan,
            "pending": weighed["pending"],
            "noise": noise,
            "duplicates": duplicates,
            "directions": directions,
        }
