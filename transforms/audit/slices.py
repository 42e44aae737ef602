"""The gradients of a test set, summed by slice, and the influence of training examples on a slice.

Influence is linear in the test example's gradient. So the sum of a training example's influences on
many test examples is its influence on the sum of their gradients: `Σ_z' influence(z, z') = Σ_t η_t
δ_tᵀ G_t ĥ_t` with `G_t = Σ_z' δ'_t ĥ'_tᵀ`. For S slices that costs as much as S test examples with
full gradients, whatever the size of the test set.

Slices are the labels of the test examples, and the values of keys that their records keep. Where
the sums of all labels would be too large, a single slice replaces them: the whole test set. Keys
with more values than the remaining room are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np

from transforms.audit.config import AuditTuning, check_test_not_empty, class_count
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.runtime import counters
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
    """Parts of a test set.

    Attributes:
        labels: number of slices by label, which come first; 1 where a single slice replaces them.
        named: key and value of each other slice, ordered by key as in `slice_keys`, then by value.
        counts: [S] int64, test examples of each slice.
        left_out: keys with too many values.
    """

    labels: int
    named: tuple[tuple[str, str], ...]
    counts: np.ndarray
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class GradientSums:
    """Sums of the gradients of a test set.

    Attributes:
        sums: [S, T, C, D] float64, of each slice.
        slices: the S slices.
    """

    sums: np.ndarray
    slices: Slices

    @staticmethod
    def of(
        features: Features,
        labels: int,
        kept: Mapping[str, Sequence[str]] | None = None,
        limit: int | None = None,
    ) -> GradientSums:
        """Sums the gradients of n examples by label and by kept values.

        Args:
            features: the examples.
            labels: number of slices by label; 1 for a single slice of all examples.
            kept: by key the value [n] of each example.
            limit: largest number of slices; a key with more values than that allows is left out.
        """
        first = features.labels[:, 0] if labels > 1 else np.zeros(len(features), np.int64)
        parts, counts = [_sums(features, first, labels)], [np.bincount(first, minlength=labels)]
        named: list[tuple[str, str]] = []
        left_out = []
        for key, values in (kept or {}).items():
            every = sorted(set(values))
            if limit is not None and labels + len(every) > limit:
                left_out.append(key)
                continue
            numbers = {value: i for i, value in enumerate(every)}
            slices = np.array([numbers[value] for value in values], np.int64)
            parts.append(_sums(features, slices, len(every)))
            counts.append(np.bincount(slices, minlength=len(every)))
            named += [(key, value) for value in every]
        return GradientSums(
            np.concatenate(parts),
            Slices(labels, tuple(named), np.concatenate(counts), tuple(left_out)),
        )

    @staticmethod
    def add(
        parts: Sequence[tuple[int, GradientSums]],
        keys: Sequence[str] = (),
        limit: int | None = None,
    ) -> GradientSums:
        """Adds numbered sums in the order of their numbers.

        Of `keys`, in their order, those stay whose values fit into the limit of slices.
        """
        ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
        labels = ordered[0].slices.labels
        named, left_out = _fitting([part.slices for part in ordered], keys, limit)
        index = {pair: labels + i for i, pair in enumerate(named)}
        sums = np.zeros((labels + len(named), *ordered[0].sums.shape[1:]))
        counts = np.zeros(len(sums), np.int64)
        for part in ordered:
            known = [
                (i, index[pair])
                for i, pair in enumerate(part.slices.named, labels)
                if pair in index
            ]
            rows = np.array([*range(labels), *(i for i, _ in known)], np.int64)
            into = np.array([*range(labels), *(i for _, i in known)], np.int64)
            sums[into] += part.sums[rows]
            counts[into] += part.slices.counts[rows]
        return GradientSums(sums, Slices(labels, tuple(named), counts, left_out))

    def influence(self, train: Features, learning_rates: Sequence[float]) -> np.ndarray:
        """Returns the mean influence of n training examples on the test examples of each slice:
        [n, S] float64; NaN for an empty slice.
        """
        total = np.zeros((len(train), len(self.sums)))
        for t, rate in enumerate(learning_rates):
            loss_grads, activations = (
                array[:, t].astype(np.float64) for array in (train.loss_grads, train.activations)
            )
            for i in range(len(self.sums)):
                total[:, i] += rate * np.sum((loss_grads @ self.sums[i, t]) * activations, axis=1)
        with np.errstate(invalid="ignore"):
            return total / self.slices.counts

    def fitting(self, limit: int) -> GradientSums:
        """Returns the sums without the keys that exceed a limit of slices by themselves."""
        slices = self.slices
        keys = [key for key, _ in slices.named]
        many = {key for key in keys if slices.labels + keys.count(key) > limit}
        if not many:
            return self
        kept = [i for i, key in enumerate(keys, slices.labels) if key not in many]
        rows = np.array([*range(slices.labels), *kept], np.int64)
        named = tuple(pair for pair in slices.named if pair[0] not in many)
        left_out = (*slices.left_out, *sorted(many))
        return GradientSums(
            self.sums[rows], Slices(slices.labels, named, slices.counts[rows], left_out)
        )


def _fitting(
    parts: Sequence[Slices], keys: Sequence[str], limit: int | None
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Keys and values of the slices by those keys that fit into the limit, and the other keys."""
    left_out = {key for part in parts for key in part.left_out}
    named: list[tuple[str, str]] = []
    for key in keys:
        values = sorted({pair for part in parts for pair in part.named if pair[0] == key})
        if limit is not None and parts[0].labels + len(named) + len(values) > limit:
            left_out.add(key)
        if key not in left_out:
            named += values
    return named, tuple(key for key in keys if key in left_out)


def _sums(features: Features, slices: np.ndarray, count: int) -> np.ndarray:
    """The sums [count, T, C, D] of examples, each of one slice [n]."""
    checkpoints, outputs, units = (
        features.loss_grads.shape[1],
        features.loss_grads.shape[2],
        features.activations.shape[2],
    )
    sums = np.zeros((count, checkpoints, outputs, units))
    for i in np.unique(slices):
        rows = slices == i
        for t in range(checkpoints):
            loss_grads, activations = (
                array[rows, t].astype(np.float64)
                for array in (features.loss_grads, features.activations)
            )
            sums[i, t] = loss_grads.T @ activations
    return sums


def label_slices(manifest: FeatureManifest, tuning: AuditTuning) -> int:
    """Returns the number of slices by label, or 1 where their sums would be too large."""
    classes = class_count(manifest)
    return classes if classes * _slice_bytes(manifest) <= tuning.slice_bytes else 1


def slice_limit(manifest: FeatureManifest, tuning: AuditTuning) -> int:
    """Returns the largest number of slices by label and by keys together."""
    return min(
        tuning.slice_bytes // _slice_bytes(manifest),
        label_slices(manifest, tuning) + tuning.slice_values,
    )


def _slice_bytes(manifest: FeatureManifest) -> int:
    return 8 * len(manifest.checkpoints) * manifest.outputs * manifest.units


@dataclasses.dataclass
class SumGradients(beam.PTransform):
    """Sums the gradients of a test set by slice: FeatureSet (one), not empty → GradientSums (one).

    Attributes:
        keys: kept keys whose values are slices, beside the labels.
        tuning: limits of the sums.
    """

    keys: Sequence[str] = ()
    tuning: AuditTuning = dataclasses.field(default_factory=AuditTuning)

    def _plan(self, features: FeatureSet) -> Iterator[tuple[int, int, int]]:
        check_test_not_empty(features)
        manifest, files = features.manifest, len(features.manifest.files)
        most = label_slices(manifest, self.tuning)
        if self.keys:
            # How many values the keys have is not known yet.
            most = (1 + len(self.keys)) * slice_limit(manifest, self.tuning)
        fitting = self.tuning.slice_group_bytes // max(1, most * _slice_bytes(manifest))
        count = max(1, min(files, self.tuning.groups, fitting))
        borders = [files * i // count for i in range(count + 1)]
        yield from zip(range(count), borders[:-1], borders[1:], strict=True)

    def _sum(self, group: tuple[int, int, int], features: FeatureSet) -> tuple[int, GradientSums]:
        number, start, stop = group
        manifest = features.manifest
        labels, limit = label_slices(manifest, self.tuning), slice_limit(manifest, self.tuning)
        total: GradientSums | None = None
        for file in range(start, stop):
            payloads = features.payloads(Span(file, 0, manifest.files[file].count))
            part = features.decode(payloads)
            kept = feature_record.kept_texts(payloads, self.keys)
            sums = GradientSums.of(part, labels, kept, limit)
            # Each key by itself: the room that others leave is known only when all are added.
            total = (
                GradientSums.add([(0, total), (1, sums)], self.keys).fitting(limit)
                if total
                else sums
            )
            counters.add("test-examples-summed", len(part))
        assert total is not None  # every group has a file
        return number, total

    def _add(
        self, grouped: tuple[None, Iterable[tuple[int, GradientSums]]], features: FeatureSet
    ) -> GradientSums:
        limit = slice_limit(features.manifest, self.tuning)
        return GradientSums.add(list(grouped[1]), self.keys, limit)

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        features = beam.pvalue.AsSingleton(sets)
        return (
            sets
            | "PlanTestGroups" >> beam.FlatMap(self._plan)  # (group, first file, file after last)
            | "SpreadTestGroups" >> beam.Reshuffle()  # (group, first file, file after the last)
            | "SumTestGradients" >> beam.Map(self._sum, features)  # (group, GradientSums)
            | "KeyTestGradients"
            >> beam.Map(lambda numbered: (None, numbered))  # (None, (group, GradientSums))
            | "GroupTestGradients" >> beam.GroupByKey()  # (None, [(group, GradientSums)])
            | "AddTestGradients" >> beam.Map(self._add, features)  # GradientSums
        )
