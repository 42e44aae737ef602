"""Fits a projection to a training set: second moments of its features, then the energy of each
coordinate, over all files.

Sums are added in an order that the feature set alone decides, and random numbers come from a seed,
so equal sets give equal projections, however many workers there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.runtime import counters
from transforms.storage.feature_set import FeatureSet
from transforms.storage.feature_set_checks import usable_rates
from transforms.vectors.config import DEFAULT_TUNING, ProjectionConfig, VectorTuning
from transforms.vectors.projections import methods
from transforms.vectors.projections.moments import (
    Measurements,
    SecondMoments,
    Strongest,
    energies,
)
from transforms.vectors.projections.projection import Projection, Scaling

# Bytes of the sums of all groups of files, which one step gathers, and the most groups there are:
# more of them than workers only add sums.
_GROUPS_BYTES = 1 << 31
_GROUPS = 256


def check_not_empty(features: FeatureSet, field: str) -> None:
    """Checks that a feature set holds an example; `field` names the setting in messages.

    Raises:
        InputError: it holds none.
    """
    if not features.manifest.examples:
        raise InputError(
            f"`{field}={features.directory!r}` holds no example: there is nothing to make vectors "
            "of"
        )


@dataclasses.dataclass(frozen=True)
class ProjectionPlan:
    """A projection to be made of a training set; see `projections.methods`.

    Attributes:
        method: one of `methods.METHODS`.
        dimensions: the most numbers of a vector; for `exact` all of them.
        seed: the seed of random numbers.
        learning_rates: η of each checkpoint.
        normalize: `none`, or another normalisation for vectors of length 1.
    """

    method: str
    dimensions: int
    seed: int
    learning_rates: tuple[float, ...]
    normalize: str = "none"

    @staticmethod
    def of(
        config: ProjectionConfig, features: FeatureSet, tuning: VectorTuning = DEFAULT_TUNING
    ) -> ProjectionPlan:
        """Plans a projection of a training set.

        Raises:
            InputError: no such vectors can be made, or they are larger than anybody can mean.
        """
        shape = features.shape
        exact = shape.checkpoints * shape.outputs * shape.units
        if config.projection == "exact":
            dimensions = exact
        else:
            dimensions = config.dimensions or min(tuning.dimensions, exact)
        try:
            methods.check_dimensions(
                config.projection, dimensions, shape.checkpoints, shape.outputs, shape.units
            )
        except ValueError as error:
            raise InputError(
                f"`dimensions={config.dimensions}`: {error} (`projection=exact`)"
            ) from error
        if dimensions > tuning.largest and not config.allow_large_vectors:
            each = 4 * dimensions
            raise InputError(
                f"vectors of {dimensions:,} numbers take {each / 1e6:.1f} MB an example, "
                f"{each * features.manifest.examples / 1e9:.1f} GB in all: choose fewer by "
                "`projection=auto` and `dimensions`, or pass `allow_large_vectors`"
            )
        return ProjectionPlan(
            config.projection,
            dimensions,
            config.seed,
            usable_rates(features.manifest, config.learning_rates),
            config.normalize or "none",
        )

    @property
    def scaling(self) -> Scaling:
        """The factors of loss gradients."""
        return Scaling(self.learning_rates, self.normalize != "none")

    @property
    def settings(self) -> dict[str, Any]:
        """The identity of the projection of a feature set, for a manifest."""
        return {
            "learning_rates": list(self.learning_rates),
            "normalize": self.normalize,
            "projection": self.method,
            "dimensions": self.dimensions,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True)
class FileGroup:
    """Files of a set that are summed up together: `first` to before `stop`; `start` is the row of
    their first record.
    """

    number: int
    first: int
    stop: int
    start: int


@dataclasses.dataclass(frozen=True, eq=False)
class GroupMeasurements:
    """The second pass's measurements of a group: energies [C, D] of each checkpoint, and its
    records of the sample.
    """

    energies: tuple[np.ndarray, ...]
    sample: Features


def plan_groups(features: FeatureSet) -> Iterator[FileGroup]:
    """Plans the groups of a set's files.

    Raises:
        InputError: it is empty.
    """
    if not features.manifest.examples:
        raise InputError(f"{features.directory} holds no example: there is nothing to project")
    counters.add("examples-to-fit", features.manifest.examples)
    shape, files = features.shape, len(features.counts)
    size = 8 * shape.checkpoints * (shape.outputs**2 + shape.units**2)
    count = max(1, min(files, _GROUPS, _GROUPS_BYTES // size))
    borders = [files * i // count for i in range(count + 1)]
    for number in range(count):
        first, stop = borders[number], borders[number + 1]
        yield FileGroup(number, first, stop, sum(features.counts[:first]))


def _read(group: FileGroup, feature_set: FeatureSet) -> Iterator[tuple[int, Features]]:
    """Reads each file of a group: the row of its first record, and its features."""
    start = group.start
    for file in range(group.first, group.stop):
        yield start, feature_set.read([Span(file, 0, feature_set.counts[file])])
        start += feature_set.counts[file]


# The tag of the output of `sum_moments` with a group's strongest records.
STRONGEST = "strongest"


def sum_moments(
    group: FileGroup, feature_set: FeatureSet, scaling: Scaling
) -> Iterator[tuple[int, tuple[int, SecondMoments]] | beam.pvalue.TaggedOutput]:
    """Yields the second moments of a group, (checkpoint, (group, SecondMoments)), and as
    `STRONGEST` its strongest records.
    """
    totals: list[SecondMoments | None] = [None] * len(scaling.learning_rates)
    strongest: Strongest | None = None
    for start, features in _read(group, feature_set):
        scaled = scaling.loss_grads(features)
        for t, total in enumerate(totals):
            moments = SecondMoments.of(scaled[:, t], features.activations[:, t])
            totals[t] = moments if total is None else total + moments
        in_file = Strongest.of(features, scaling.learning_rates, start)
        strongest = in_file if strongest is None else strongest + in_file
        counters.add("examples-summed", len(features))
    for t, total in enumerate(totals):
        assert total is not None  # every group has a file
        yield t, (group.number, total)
    yield beam.pvalue.TaggedOutput(STRONGEST, strongest)


def find_bases(
    t: int, parts: Iterable[tuple[int, SecondMoments]]
) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """Returns the bases of a checkpoint, from the moments of all groups: (checkpoint, ([C, C],
    [D, D])).
    """
    total, *others = (moments for _, moments in sorted(parts, key=lambda part: part[0]))
    for moments in others:
        total += moments
    return t, total.bases()


def measure(
    group: FileGroup,
    feature_set: FeatureSet,
    scaling: Scaling,
    bases: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
    strongest: Iterable[Strongest],
) -> tuple[int, GroupMeasurements]:
    """Measures a group's energies in the bases of each checkpoint, and reads its records of the
    sample: (group, GroupMeasurements).
    """
    ordered = _ordered(bases)
    sampled = _merged(strongest).rows
    totals = [np.zeros((len(left), len(right))) for left, right in ordered]
    sample = []
    for start, features in _read(group, feature_set):
        scaled = scaling.loss_grads(features)
        for t, pair in enumerate(ordered):
            totals[t] += energies(scaled[:, t], features.activations[:, t], pair)
        inside = (sampled >= start) & (sampled < start + len(features))
        sample.append(features.take(sampled[inside] - start))
        counters.add("examples-measured", len(features))
    return group.number, GroupMeasurements(tuple(totals), Features.concatenate(sample))


def fit(
    plan: ProjectionPlan,
    bases: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
    parts: Iterable[tuple[int, GroupMeasurements]],
) -> Projection:
    """Fits the planned projection to the measurements of all groups."""
    ordered = [measured for _, measured in sorted(parts, key=lambda part: part[0])]
    totals = [
        np.sum(of_groups, axis=0)
        for of_groups in zip(*(group.energies for group in ordered), strict=True)
    ]
    sample = Features.concatenate([group.sample for group in ordered])
    measurements = Measurements(_ordered(bases), totals, sample)
    return methods.fit(plan.method, plan.scaling, measurements, plan.dimensions, plan.seed)


def without_fitting(plan: ProjectionPlan, features: FeatureSet) -> Projection:
    """Returns the planned projection, of a method that needs only the shape of the features."""
    shape, scaling = features.shape, plan.scaling
    if plan.method == "exact":
        return methods.exact(scaling, shape.outputs, shape.units)
    make = methods.random if plan.method == "random" else methods.sketch
    return make(scaling, shape.outputs, shape.units, plan.dimensions, plan.seed)


def _ordered(
    bases: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [pair for _, pair in sorted(bases, key=lambda pair: pair[0])]


def _merged(parts: Iterable[Strongest]) -> Strongest:
    total, *others = parts
    for part in others:
        total += part
    return total


@dataclasses.dataclass
class FitProjection(beam.PTransform):
    """Makes the planned projection of a training set: FeatureSet (one) → Projection (one).

    Attributes:
        plan: the projection to be made.
    """

    plan: ProjectionPlan

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        feature_set = beam.pvalue.AsSingleton(sets)
        if self.plan.method not in methods.FITTED:
            return sets | "MakeProjection" >> beam.Map(
                lambda features: without_fitting(self.plan, features)
            )  # Projection
        groups = (
            sets
            | "PlanGroups" >> beam.FlatMap(plan_groups)  # FileGroup
            | "SpreadGroups" >> beam.Reshuffle()  # FileGroup
        )
        moments, strongest = groups | "SumMoments" >> beam.FlatMap(
            sum_moments, feature_set, self.plan.scaling
        ).with_outputs(STRONGEST, main="moments")  # (checkpoint, (group, SecondMoments)), Strongest
        bases = (
            moments
            | "GroupMoments" >> beam.GroupByKey()  # (checkpoint, [(group, SecondMoments)])
            | "FindBases" >> beam.MapTuple(find_bases)  # (checkpoint, ([C, C], [D, D]))
        )
        measured = groups | "MeasureEnergies" >> beam.Map(
            measure,
            feature_set,
            self.plan.scaling,
            beam.pvalue.AsList(bases),
            beam.pvalue.AsList(strongest),
        )  # (group, Measured)
        return (
            sets.pipeline
            | "StartFitting" >> beam.Create([self.plan])  # ProjectionPlan
            | "FitProjection"
            >> beam.Map(fit, beam.pvalue.AsList(bases), beam.pvalue.AsList(measured))  # Projection
        )
