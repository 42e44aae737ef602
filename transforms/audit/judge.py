"""The audit of a training set: what each example's features, seen beside all others', say of its
label.

Sums over all activations are made first, then each record is read once more and judged. What
travels is sums and a few numbers per example, never features. All sums are added in an order that
the feature set alone decides, so that runners and their bundles make no difference.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.audit import pending, suspicion
from transforms.audit.pending import AuditedExamples
from transforms.audit.slices import GradientSums, SumGradients
from transforms.audit.suspicion import LabelCounts, LeaveOneOut, Moments, Noise
from transforms.core.errors import InputError
from transforms.core.shapes import Span
from transforms.duplicates.directions import Directions
from transforms.duplicates.find import FindDuplicates
from transforms.duplicates.signatures import Signatures
from transforms.runtime import counters
from transforms.scoring.influence import self_influence
from transforms.storage import feature_record
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet

# What all groups' sums of one audit may take.
_MOMENT_BYTES = 1 << 32
_GROUPS = 64
_SIGNATURES, _COUNTS = "signatures", "counts"


def classes(found: FeatureManifest) -> int:
    """K, how many classes there are."""
    return max(2, found.outputs)


def check_not_empty(found: FeatureManifest, name: str) -> None:
    """Makes sure that there is something to audit.

    Raises:
        InputError: the set `name` holds no example.
    """
    if not found.examples:
        raise InputError(f"{name} holds no example: there is nothing to audit")


def check_labels(found: FeatureManifest, name: str) -> None:
    """Makes sure that there are labels to audit.

    Raises:
        InputError: the examples of `name` do not have one class each, as somebody gave it.
    """
    if found.task not in ("class", "binary"):
        raise InputError(
            f"{name} has labels of the kind {found.task}: an audit needs one class per example "
            "(tasks class and binary)"
        )
    if found.settings["labels"] != "given":
        raise InputError(
            f"{name} was extracted with predicted labels, which cannot be audited: extract it with "
            "`labels=given`"
        )


def _has_one(found: FeatureManifest) -> bool:
    return bool(found.settings["include_bias"])


def plan_groups(found: FeatureSet) -> Iterator[tuple[int, int, int]]:
    """Runs of files whose sums are made at once: (group, first file, file after the last).

    Raises:
        InputError: the set is empty.
    """
    manifest = found.manifest
    check_not_empty(manifest, found.directory)
    counters.add("examples-planned", manifest.examples)
    units = manifest.units + 1
    size = 8 * len(manifest.checkpoints) * units * (units + classes(manifest))
    count = max(1, min(len(manifest.files), _GROUPS, _MOMENT_BYTES // size))
    borders = [len(manifest.files) * i // count for i in range(count + 1)]
    logging.getLogger(__name__).info("%d examples in %d groups", manifest.examples, count)
    yield from zip(range(count), borders[:-1], borders[1:], strict=True)


def sum_moments(
    group: tuple[int, int, int], found: FeatureSet
) -> Iterator[tuple[int, tuple[int, Moments]]]:
    """The moments of a group of files at each checkpoint: (checkpoint, (group, Moments))."""
    manifest = found.manifest
    number, start, stop = group
    one = _has_one(manifest)
    totals = [
        suspicion.no_moments(manifest.units + (not one), classes(manifest))
        for _ in manifest.checkpoints
    ]
    for file in range(start, stop):
        features = found.read([Span(file, 0, manifest.files[file].count)])
        for t in range(len(totals)):
            totals[t] += suspicion.moments(
                suspicion.with_one(features.activations[:, t], one),
                features.labels[:, 0],
                classes(manifest),
            )
        counters.add("examples-summed", len(features))
    for t, total in enumerate(totals):
        yield t, (number, total)


def fit(grouped: tuple[int, Iterable[tuple[int, Moments]]]) -> tuple[int, LeaveOneOut]:
    """The classifiers of a checkpoint, from the moments of all groups."""
    t, parts = grouped
    first, *others = (moments for _, moments in sorted(parts, key=lambda part: part[0]))
    for moments in others:
        first += moments
    return t, LeaveOneOut.fit(first)


def weigh(
    file: int,
    found: FeatureSet,
    rates: Sequence[float],
    directory: str,
    fitted: Sequence[tuple[int, LeaveOneOut]],
    tests: Sequence[GradientSums],
) -> Iterator[Any]:
    """Reads a feature file and finds what there is for and against each example's label, and its
    influence on the test set, if any: Weighed, a file in `directory`, and Signatures and
    LabelCounts as outputs of their own.
    """
    (test,) = tests or (None,)
    manifest = found.manifest
    payloads = found.payloads(Span(file, 0, manifest.files[file].count))
    features = found.decode(payloads)
    labels = features.labels[:, 0]
    ordered = [one for _, one in sorted(fitted, key=lambda pair: pair[0])]
    activations = [
        suspicion.with_one(features.activations[:, t], _has_one(manifest))
        for t in range(len(ordered))
    ]
    counters.add("examples-audited", len(features))
    yield beam.pvalue.TaggedOutput(
        _SIGNATURES, Signatures.of(file, features.activations, labels, directions_of(ordered))
    )
    evidence = suspicion.all_evidence(ordered, activations, labels)
    yield beam.pvalue.TaggedOutput(_COUNTS, LabelCounts.of(evidence, labels, classes(manifest)))
    known = AuditedExamples(
        file,
        features.example_ids,
        feature_record.packed_origins(payloads),
        labels,
        features.predictions[:, 0],
        features.probabilities,
        features.label_probabilities.astype(np.float64).mean(axis=1),
        self_influence(features, rates),
        test.influence(features, rates) if test else None,
        test.slices if test else None,
    )
    yield pending.write(directory, known, evidence)


def directions_of(fitted: Sequence[LeaveOneOut]) -> Directions:
    """The directions of a set, from the class means of each checkpoint."""
    return Directions(np.stack([one.counts @ one.means / one.counts.sum() for one in fitted]))


def _directions(_: None, fitted: Sequence[tuple[int, LeaveOneOut]]) -> Directions:
    return directions_of([one for _, one in sorted(fitted, key=lambda pair: pair[0])])


def _noise(counts: LabelCounts, found: FeatureSet) -> Noise:
    return suspicion.estimate_noise(counts.surest(classes(found.manifest)))


@dataclasses.dataclass
class AuditLabels(beam.PTransform):
    """Judges the labels of a feature set: sets: FeatureSet (one), and tests: FeatureSet (one),
    where influence on a test set is measured → weighed: Weighed of each feature file, noise: Noise
    (one), with which they are judged, duplicates: Duplicates (one), directions: Directions (one),
    and sets.

    Attributes:
        learning_rates: η of each checkpoint.
        directory: where weighed examples wait until all are.
        min_similarity: the similarity from which on examples with different labels are duplicates.
        slice_keys: kept keys of the test set whose values are slices of it, besides its labels.
    """

    learning_rates: Sequence[float]
    directory: str
    min_similarity: float
    slice_keys: Sequence[str] = ()

    def expand(self, collections: Mapping[str, beam.PCollection]) -> Mapping[str, beam.PCollection]:
        sets = collections["sets"]
        found = beam.pvalue.AsSingleton(sets)
        fitted = (
            sets
            | "PlanGroups" >> beam.FlatMap(plan_groups)  # (group, first file, file after the last)
            | "SpreadGroups" >> beam.Reshuffle()  # (group, first file, file after the last)
            | "SumMoments" >> beam.FlatMap(sum_moments, found)  # (checkpoint, (group, Moments))
            | "GroupMoments" >> beam.GroupByKey()  # (checkpoint, [(group, Moments)])
            | "FitClassifiers" >> beam.Map(fit)  # (checkpoint, LeaveOneOut)
        )
        if "tests" in collections:
            tests = collections["tests"] | "SumGradients" >> SumGradients(
                self.slice_keys
            )  # GradientSums
        else:
            tests = sets.pipeline | "TestNothing" >> beam.Create([])
        outputs = (
            sets
            | "ListFiles" >> beam.FlatMap(lambda one: range(len(one.manifest.files)))  # file
            | "SpreadFiles" >> beam.Reshuffle()  # file
            | "WeighLabels"
            >> beam.FlatMap(
                weigh,
                found,
                self.learning_rates,
                self.directory,
                beam.pvalue.AsList(fitted),
                beam.pvalue.AsList(tests),
            ).with_outputs(_SIGNATURES, _COUNTS, main="weighed")  # Weighed, Signatures, LabelCounts
        )
        directions = (
            sets.pipeline
            | "StartDirections" >> beam.Create([None])
            | "CentreActivations" >> beam.Map(_directions, beam.pvalue.AsList(fitted))
        )  # Directions
        noise = (
            outputs[_COUNTS]
            | "AddLabelCounts" >> beam.CombineGlobally(LabelCounts.merge)  # LabelCounts
            | "EstimateNoise" >> beam.Map(_noise, found)  # Noise
        )
        return {
            "sets": sets,
            "directions": directions,
            "weighed": outputs["weighed"],
            "noise": noise,
            "duplicates": (sets, outputs[_SIGNATURES], directions)
            | "FindDuplicates" >> FindDuplicates(self.min_similarity),  # Duplicates
        }
