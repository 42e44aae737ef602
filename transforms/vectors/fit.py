"""A projection that fits a training set: second moments of its features, then the energy of each
coordinate, over all files.

All sums are added in an order that the feature set alone decides, and random numbers come from a
seed, so equal sets give equal projections, however many workers there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.runtime import counters
from transforms.storage.feature_set import FeatureSet
from transforms.vectors import projections
from transforms.vectors.projections import (
    Measurements,
    Projection,
    Scaling,
    SecondMoments,
    Strongest,
)

# What the sums of all groups of files may take, and how many groups there are at most.
_GROUPS_BYTES = 1 << 31
_GROUPS = 256


@dataclasses.dataclass(frozen=True)
class ProjectionWanted:
    """What is asked for, before the features are known; see `projections`.

    Attributes:
        method: one of `projections.METHODS`.
        dimensions: how many numbers a vector has at most; for `exact` as many as there are.
        seed: of random numbers.
        scaling: what is multiplied in.
    """

    method: str
    dimensions: int
    seed: int
    scaling: Scaling


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
class Measured:
    """What the second pass knows of a group: energies [C, D] of each checkpoint, and which of the
    sample's records are in it.
    """

    energies: tuple[np.ndarray, ...]
    sample: Features


def plan_groups(found: FeatureSet) -> Iterator[FileGroup]:
    """The groups of a set's files.

    Raises:
        InputError: it is empty.
    """
    if not found.manifest.examples:
        raise InputError(f"{found.directory} holds no example: there is nothing to project")
    counters.add("examples-to-fit", found.manifest.examples)
    shape, files = found.shape, len(found.counts)
    size = 8 * shape.checkpoints * (shape.outputs**2 + shape.units**2)
    count = max(1, min(files, _GROUPS, _GROUPS_BYTES // size))
    borders = [files * i // count for i in range(count + 1)]
    for number in range(count):
        first, stop = borders[number], borders[number + 1]
        yield FileGroup(number, first, stop, sum(found.counts[:first]))


def _read(group: FileGroup, found: FeatureSet) -> Iterator[tuple[int, Features]]:
    """The features of each file of a group, and the row of its first record."""
    start = group.start
    for file in range(group.first, group.stop):
        yield start, found.read([Span(file, 0, found.counts[file])])
        start += found.counts[file]


STRONGEST = "strongest"


def sum_moments(
    group: FileGroup, found: FeatureSet, scaling: Scaling
) -> Iterator[tuple[int, tuple[int, SecondMoments]] | beam.pvalue.TaggedOutput]:
    """The second moments of a group, (checkpoint, (group, SecondMoments)); and as `STRONGEST` its
    strongest records.
    """
    totals: list[SecondMoments | None] = [None] * len(scaling.learning_rates)
    strongest: Strongest | None = None
    for start, features in _read(group, found):
        scaled = scaling.loss_grads(features)
        for t, total in enumerate(totals):
            moments = SecondMoments.of(scaled[:, t], features.activations[:, t])
            totals[t] = moments if total is None else total + moments
        here = Strongest.of(features, scaling.learning_rates, start)
        strongest = here if strongest is None else strongest + here
        counters.add("examples-summed", len(features))
    for t, total in enumerate(totals):
        assert total is not None  # every group has a file
        yield t, (group.number, total)
    yield beam.pvalue.TaggedOutput(STRONGEST, strongest)


def find_bases(
    t: int, parts: Iterable[tuple[int, SecondMoments]]
) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """The bases of a checkpoint, from the moments of all groups: (checkpoint, ([C, C], [D, D]))."""
    first, *others = (moments for _, moments in sorted(parts, key=lambda part: part[0]))
    for moments in others:
        first += moments
    return t, first.bases()


def measure(
    group: FileGroup,
    found: FeatureSet,
    scaling: Scaling,
    bases: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
    strongest: Iterable[Strongest],
) -> tuple[int, Measured]:
    """The energies of a group in the bases of each checkpoint, and its part of the sample: (group,
    Measured).
    """
    ordered = _ordered(bases)
    wanted = _merged(strongest).rows
    totals = [np.zeros((len(one), len(other))) for one, other in ordered]
    sample = []
    for start, features in _read(group, found):
        scaled = scaling.loss_grads(features)
        for t, pair in enumerate(ordered):
            totals[t] += projections.energies(scaled[:, t], features.activations[:, t], pair)
        sample.append(
            features.take(wanted[(wanted >= start) & (wanted < start + len(features))] - start)
        )
        counters.add("examples-measured", len(features))
    return group.number, Measured(tuple(totals), Features.concatenate(sample))


def fit(
    wanted: ProjectionWanted,
    bases: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
    parts: Iterable[tuple[int, Measured]],
) -> Projection:
    """The projection that is wanted, from what is known of all groups."""
    ordered = [measured for _, measured in sorted(parts, key=lambda part: part[0])]
    totals = [
        np.sum(energies, axis=0)
        for energies in zip(*(one.energies for one in ordered), strict=True)
    ]
    sample = Features.concatenate([one.sample for one in ordered])
    return projections.fit(
        wanted.method,
        wanted.scaling,
        Measurements(_ordered(bases), totals, sample),
        wanted.dimensions,
        wanted.seed,
    )


def without_fitting(wanted: ProjectionWanted, found: FeatureSet) -> Projection:
    """The projection that is wanted, of a method that needs no more than the shape of the
    features.
    """
    shape, scaling = found.shape, wanted.scaling
    if wanted.method == "exact":
        return projections.exact(scaling, shape.outputs, shape.units)
    made = projections.random if wanted.method == "random" else projections.sketch
    return made(scaling, shape.outputs, shape.units, wanted.dimensions, wanted.seed)


def _ordered(
    bases: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [pair for _, pair in sorted(bases, key=lambda pair: pair[0])]


def _merged(parts: Iterable[Strongest]) -> Strongest:
    first, *others = parts
    for one in others:
        first += one
    return first


@dataclasses.dataclass
class FitProjection(beam.PTransform):
    """Makes the projection that is wanted for a training set: FeatureSet (one) → Projection (one).

    Attributes:
        wanted: what is asked for.
    """

    wanted: ProjectionWanted

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        found = beam.pvalue.AsSingleton(sets)
        if self.wanted.method not in projections.FITTED:
            return sets | "MakeProjection" >> beam.Map(
                lambda one: without_fitting(self.wanted, one)
            )  # Projection
        groups = (
            sets
            | "PlanGroups" >> beam.FlatMap(plan_groups)  # FileGroup
            | "SpreadGroups" >> beam.Reshuffle()  # FileGroup
        )
        moments, strongest = groups | "SumMoments" >> beam.FlatMap(
            sum_moments, found, self.wanted.scaling
        ).with_outputs(STRONGEST, main="moments")  # (checkpoint, (group, SecondMoments)), Strongest
        bases = (
            moments
            | "GroupMoments" >> beam.GroupByKey()  # (checkpoint, [(group, SecondMoments)])
            | "FindBases" >> beam.MapTuple(find_bases)  # (checkpoint, ([C, C], [D, D]))
        )
        measured = groups | "MeasureEnergies" >> beam.Map(
            measure,
            found,
            self.wanted.scaling,
            beam.pvalue.AsList(bases),
            beam.pvalue.AsList(strongest),
        )  # (group, Measured)
        return (
            sets.pipeline
            | "StartFitting" >> beam.Create([self.wanted])  # ProjectionWanted
            | "FitProjection"
            >> beam.Map(fit, beam.pvalue.AsList(bases), beam.pvalue.AsList(measured))  # Projection
        )
