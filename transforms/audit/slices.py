"""The gradients of a test set, summed by slice, and the influence of training examples on all of a
slice at once.

Influence is linear in the test example's gradient, so the sum of a training example's influences on
many test examples is that on the sum of their gradients: `Σ_z' influence(z, z') = Σ_t η_t δ_tᵀ G_t
ĥ_t` with `G_t = Σ_z' δ'_t ĥ'_tᵀ`. That costs as much as S test examples of full gradients, whatever
their number.

Slices are the labels of the test examples, and the values of keys that their records keep. Where
the sums of all labels would be too large there is one slice instead of them, the whole test set; a
key that has too many values for what is left is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.runtime import counters
from transforms.storage import feature_record
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet

# The sums of all slices may take so much.
_SLICES_BYTES = 64 << 20
# Every row of an audit holds a number for each slice.
_MOST_VALUES = 256
# All groups' sums may take so much.
_GROUPS_BYTES = 1 << 29
_GROUPS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
    """Parts of a test set.

    Attributes:
        labels: how many of the slices, the first ones, are those of the labels; 1 where one stands
            for all.
        named: key and value of each of the others; by key in the order of the flag, then by value.
        counts: [S] int64, test examples of each.
        left_out: keys that have too many values.
    """

    labels: int
    named: tuple[tuple[str, str], ...]
    counts: np.ndarray
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class GradientSums:
    """The gradients of a test set, summed.

    Attributes:
        sums: [S, T, C, D] float64, of each slice.
        slices: which these are.
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
        """The sums of n examples: of each of so many `labels`, or, if that is 1, of all; and of
        each value of what is kept, [n] by key.

        A key with more values than the `limit` of all slices allows is left out.
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
            number = {value: i for i, value in enumerate(every)}
            places = np.array([number[value] for value in values], np.int64)
            parts.append(_sums(features, places, len(every)))
            counts.append(np.bincount(places, minlength=len(every)))
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
        """Adds numbered sums up, in the order of their numbers; of `keys`, in their order, those
        that the limit leaves room for.
        """
        ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
        labels = ordered[0].slices.labels
        out = {key for part in ordered for key in part.slices.left_out}
        named: list[tuple[str, str]] = []
        for key in keys:
            values = sorted(
                {pair for part in ordered for pair in part.slices.named if pair[0] == key}
            )
            if limit is not None and labels + len(named) + len(values) > limit:
                out.add(key)
            if key not in out:
                named += values
        place = {pair: labels + i for i, pair in enumerate(named)}
        sums = np.zeros((labels + len(named), *ordered[0].sums.shape[1:]))
        counts = np.zeros(len(sums), np.int64)
        for part in ordered:
            known = [
                (i, place[pair])
                for i, pair in enumerate(part.slices.named, labels)
                if pair in place
            ]
            rows = np.array([*range(labels), *(i for i, _ in known)], np.int64)
            into = np.array([*range(labels), *(i for _, i in known)], np.int64)
            sums[into] += part.sums[rows]
            counts[into] += part.slices.counts[rows]
        return GradientSums(
            sums, Slices(labels, tuple(named), counts, tuple(key for key in keys if key in out))
        )

    def influence(self, train: Features, learning_rates: Sequence[float]) -> np.ndarray:
        """The mean influence of n training examples on the examples of each slice: [n, S] float64;
        NaN where a slice is empty.
        """
        total = np.zeros((len(train), len(self.sums)))
        for t, rate in enumerate(learning_rates):
            loss_grads, activations = (
                array[:, t].astype(np.float64) for array in (train.loss_grads, train.activations)
            )
            for one in range(len(self.sums)):
                total[:, one] += rate * np.sum(
                    (loss_grads @ self.sums[one, t]) * activations, axis=1
                )
        with np.errstate(invalid="ignore"):
            return total / self.slices.counts


def _sums(features: Features, slices: np.ndarray, count: int) -> np.ndarray:
    """The sums [count, T, C, D] of examples, each of one slice [n]."""
    checkpoints, outputs, units = (
        features.loss_grads.shape[1],
        features.loss_grads.shape[2],
        features.activations.shape[2],
    )
    sums = np.zeros((count, checkpoints, outputs, units))
    for one in np.unique(slices):
        rows = slices == one
        for t in range(checkpoints):
            loss_grads, activations = (
                array[rows, t].astype(np.float64)
                for array in (features.loss_grads, features.activations)
            )
            sums[one, t] = loss_grads.T @ activations
    return sums


def label_slices(found: FeatureManifest) -> int:
    """How many slices the labels of a test set are, or 1 where their sums would be too large."""
    classes = max(2, found.outputs)
    return classes if classes * _slice_bytes(found) <= _SLICES_BYTES else 1


def slice_limit(found: FeatureManifest) -> int:
    """How many slices there may be in all."""
    return min(_SLICES_BYTES // _slice_bytes(found), label_slices(found) + _MOST_VALUES)


def _slice_bytes(found: FeatureManifest) -> int:
    return 8 * len(found.checkpoints) * found.outputs * found.units


def _plan(found: FeatureSet, keys: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    files = len(found.manifest.files)
    if not files:
        raise InputError(f"{found.directory} holds no test example: there is nothing to influence")
    # How many values the keys have is not known yet.
    most = (1 + len(keys)) * slice_limit(found.manifest) if keys else label_slices(found.manifest)
    count = max(
        1, min(files, _GROUPS, _GROUPS_BYTES // max(1, most * _slice_bytes(found.manifest)))
    )
    borders = [files * i // count for i in range(count + 1)]
    yield from zip(range(count), borders[:-1], borders[1:], strict=True)


def _sum(
    group: tuple[int, int, int], found: FeatureSet, keys: Sequence[str]
) -> tuple[int, GradientSums]:
    number, start, stop = group
    labels, limit = label_slices(found.manifest), slice_limit(found.manifest)
    total: GradientSums | None = None
    for file in range(start, stop):
        payloads = found.payloads(Span(file, 0, found.manifest.files[file].count))
        features = found.decode(payloads)
        sums = GradientSums.of(features, labels, feature_record.kept_texts(payloads, keys), limit)
        # Each key by itself, since what others leave is known only when all are added.
        total = _without(GradientSums.add([(0, total), (1, sums)], keys), limit) if total else sums
        counters.add("test-examples-summed", len(features))
    assert total is not None  # every group has a file
    return number, total


def _without(found: GradientSums, limit: int) -> GradientSums:
    """Sums without the keys that have too many values by themselves."""
    known = found.slices
    values = [key for key, _ in known.named]
    many = {key for key in values if known.labels + values.count(key) > limit}
    if not many:
        return found
    rows = np.array(
        [
            *range(known.labels),
            *(i for i, key in enumerate(values, known.labels) if key not in many),
        ],
        np.int64,
    )
    named = tuple(pair for pair in known.named if pair[0] not in many)
    return GradientSums(
        found.sums[rows],
        Slices(known.labels, named, known.counts[rows], (*known.left_out, *sorted(many))),
    )


def _add(
    grouped: tuple[None, Iterable[tuple[int, GradientSums]]], found: FeatureSet, keys: Sequence[str]
) -> GradientSums:
    return GradientSums.add(list(grouped[1]), keys, slice_limit(found.manifest))


@dataclasses.dataclass
class SumGradients(beam.PTransform):
    """Sums the gradients of a test set, which is not empty, by slice: FeatureSet (one) →
    GradientSums (one).

    Attributes:
        keys: kept keys whose values are slices, besides the labels.
    """

    keys: Sequence[str] = ()

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        found = beam.pvalue.AsSingleton(sets)
        return (
            sets
            | "PlanTestGroups"
            >> beam.FlatMap(_plan, self.keys)  # (group, first file, file after the last)
            | "SpreadTestGroups" >> beam.Reshuffle()  # (group, first file, file after the last)
            | "SumTestGradients" >> beam.Map(_sum, found, self.keys)  # (group, GradientSums)
            | "KeyTestGradients"
            >> beam.Map(lambda numbered: (None, numbered))  # (None, (group, GradientSums))
            | "GroupTestGradients" >> beam.GroupByKey()  # (None, [(group, GradientSums)])
            | "AddTestGradients" >> beam.Map(_add, found, self.keys)  # GradientSums
        )
