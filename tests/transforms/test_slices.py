"""Influence on slices of a test set: equal to the mean over all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transforms.manifest import FeatureManifest
from transforms.records import Features
from transforms.slices import GradientSums, slice_count


def features(rng: np.random.Generator, n: int) -> Features:
    labels = rng.integers(0, 3, (n, 1))
    ids = [f"{i}" for i in range(n)]
    return Features.of(ids, labels, labels, np.ones(n), np.ones((n, 2)), rng.normal(size=(n, 2, 3)), rng.normal(size=(n, 2, 5)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8))
def test_it_is_the_mean_of_all_pairs(seed, trains, tests):
    rng = np.random.default_rng(seed)
    train, test = features(rng, trains), features(rng, tests)
    rates = (0.3, 0.05)
    half = tests // 2
    parts = [(1, test.take(slice(half, None))), (0, test.take(slice(half)))]
    summed = GradientSums.add([(number, GradientSums.of(part, part.labels[:, 0], 3)) for number, part in parts])
    # Full gradients, pair by pair.
    gradients = [np.einsum("ntc,ntd->ntcd", one.loss_grads.astype(float), one.activations.astype(float)) for one in (train, test)]
    pairs = np.einsum("itcd,jtcd,t->ij", *gradients, rates)
    found = summed.influence(train, rates)
    for k in range(3):
        rows = test.labels[:, 0] == k
        assert summed.counts[k] == rows.sum()
        if rows.any():
            np.testing.assert_allclose(found[:, k], pairs[:, rows].mean(axis=1), rtol=1e-9, atol=1e-12)
        else:
            assert np.isnan(found[:, k]).all()


def test_labels_are_slices_where_their_sums_are_small_enough():
    def manifest(outputs: int, units: int) -> FeatureManifest:
        return FeatureManifest("features", "", {}, (), {}, "", "class", outputs, units, ("a", "b", "c"), (1.0,) * 3, (), {})

    assert slice_count(manifest(10, 129)) == 10
    assert slice_count(manifest(1, 129)) == 2
    assert slice_count(manifest(1000, 2049)) == 1
