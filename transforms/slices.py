"""The gradients of a test set, summed by slice, and the influence of training examples on all of a slice at once.

Influence is linear in the test example's gradient, so the sum of a training example's influences on many test examples is that on the sum
of their gradients: `Σ_z' influence(z, z') = Σ_t η_t δ_tᵀ G_t ĥ_t` with `G_t = Σ_z' δ'_t ĥ'_tᵀ`. That costs as much as S test examples of
full gradients, whatever their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms import counting
from transforms.manifest import FeatureManifest
from transforms.records import Features
from transforms.scores import FeatureSet
from transforms.tiles import Span

# The sums of one slice for each label may take so much; else there is one slice.
_SLICES_BYTES = 64 << 20
# All groups' sums may take so much.
_GROUPS_BYTES = 1 << 29
_GROUPS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class GradientSums:
    """The gradients of a test set, summed.

    Attributes:
        sums: [S, T, C, D] float64, of each slice.
        counts: [S] int64, test examples of each.
    """

    sums: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(features: Features, slices: np.ndarray, count: int) -> GradientSums:
        """The sums of n examples, each of one of `count` slices [n]."""
        checkpoints, outputs, units = features.loss_grads.shape[1], features.loss_grads.shape[2], features.activations.shape[2]
        sums = np.zeros((count, checkpoints, outputs, units))
        for one in np.unique(slices):
            rows = slices == one
            for t in range(checkpoints):
                loss_grads, activations = (array[rows, t].astype(np.float64) for array in (features.loss_grads, features.activations))
                sums[one, t] = loss_grads.T @ activations
        return GradientSums(sums, np.bincount(slices, minlength=count))

    @staticmethod
    def add(parts: Sequence[tuple[int, GradientSums]]) -> GradientSums:
        """Adds numbered sums up, in the order of their numbers."""
        ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
        sums, counts = ordered[0].sums.copy(), ordered[0].counts.copy()
        for part in ordered[1:]:
            sums += part.sums
            counts += part.counts
        return GradientSums(sums, counts)

    def influence(self, train: Features, learning_rates: Sequence[float]) -> np.ndarray:
        """The mean influence of n training examples on the examples of each slice: [n, S] float64; NaN where a slice is empty."""
        total = np.zeros((len(train), len(self.counts)))
        for t, rate in enumerate(learning_rates):
            loss_grads, activations = (array[:, t].astype(np.float64) for array in (train.loss_grads, train.activations))
            for one in range(len(self.counts)):
                total[:, one] += rate * np.sum((loss_grads @ self.sums[one, t]) * activations, axis=1)
        with np.errstate(invalid="ignore"):
            return total / self.counts


def slice_count(found: FeatureManifest) -> int:
    """How many slices a test set has: one for each label, or one in all where their sums would be too large."""
    classes = max(2, found.outputs)
    return classes if classes * _slice_bytes(found) <= _SLICES_BYTES else 1


def _slice_bytes(found: FeatureManifest) -> int:
    return 8 * len(found.checkpoints) * found.outputs * found.units


def _plan(found: FeatureSet) -> Iterator[tuple[int, int, int]]:
    files = len(found.manifest.files)
    size = slice_count(found.manifest) * _slice_bytes(found.manifest)
    count = max(1, min(files, _GROUPS, _GROUPS_BYTES // size))
    borders = [files * i // count for i in range(count + 1)]
    yield from zip(range(count), borders[:-1], borders[1:], strict=True)


def _sum(group: tuple[int, int, int], found: FeatureSet) -> tuple[int, GradientSums]:
    number, start, stop = group
    count = slice_count(found.manifest)
    total: GradientSums | None = None
    for file in range(start, stop):
        features = found.read([Span(file, 0, found.manifest.files[file].count)])
        slices = features.labels[:, 0] if count > 1 else np.zeros(len(features), np.int64)
        sums = GradientSums.of(features, slices, count)
        total = GradientSums.add([(0, total), (1, sums)]) if total else sums
        counting.add("test-examples-summed", len(features))
    assert total is not None  # every group has a file
    return number, total


def _add(_: None, parts: Iterable[tuple[int, GradientSums]]) -> GradientSums:
    return GradientSums.add(list(parts))


class SumGradients(beam.PTransform):
    """Sums the gradients of a test set, which is not empty, by slice: FeatureSet (one) → GradientSums (one)."""

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        return (
            sets
            | "PlanTestGroups" >> beam.FlatMap(_plan)  # (group, first file, file after the last)
            | "SpreadTestGroups" >> beam.Reshuffle()  # (group, first file, file after the last)
            | "SumTestGradients" >> beam.Map(_sum, beam.pvalue.AsSingleton(sets))  # (group, GradientSums)
            | "KeyTestGradients" >> beam.Map(lambda numbered: (None, numbered))  # (None, (group, GradientSums))
            | "GroupTestGradients" >> beam.GroupByKey()  # (None, [(group, GradientSums)])
            | "AddTestGradients" >> beam.MapTuple(_add)  # GradientSums
        )
