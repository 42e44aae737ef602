"""Influence on slices of a test set: equal to the mean over all pairs."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import feature
from tests.transforms.audit.sets import clusters, with_manifest, written
from transforms.audit.config import AuditTuning
from transforms.audit.slices import GradientSums, SumGradients, label_slices, slice_limit
from transforms.core.features import Features
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest


def features(rng: np.random.Generator, n: int) -> Features:
    labels = rng.integers(0, 3, (n, 1))
    ids = [b"%d" % i for i in range(n)]
    return Features.of(
        ids,
        labels,
        labels,
        np.ones(n),
        np.ones((n, 2)),
        rng.normal(size=(n, 2, 3)),
        rng.normal(size=(n, 2, 5)),
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8))
def test_it_is_the_mean_of_all_pairs(seed, trains, tests):
    rng = np.random.default_rng(seed)
    train, test = features(rng, trains), features(rng, tests)
    rates = (0.3, 0.05)
    half = tests // 2
    kept = {
        "place": rng.choice(["a", "b", "c"], tests).tolist(),
        "time": rng.choice(["d", "e"], tests).tolist(),
    }
    parts = [
        (
            number,
            GradientSums.of(
                test.take(rows), 3, {key: values[rows] for key, values in kept.items()}
            ),
        )
        for number, rows in ((1, slice(half, None)), (0, slice(0, half)))
    ]
    summed = GradientSums.add(parts, ("time", "place"))
    # Full gradients, pair by pair.
    gradients = [
        np.einsum("ntc,ntd->ntcd", one.loss_grads.astype(float), one.activations.astype(float))
        for one in (train, test)
    ]
    pairs = np.einsum("itcd,jtcd,t->ij", *gradients, rates)
    found = summed.influence(train, rates)
    for k in range(3):
        rows = test.labels[:, 0] == k
        assert summed.slices.counts[k] == rows.sum()
        if rows.any():
            np.testing.assert_allclose(
                found[:, k], pairs[:, rows].mean(axis=1), rtol=1e-9, atol=1e-12
            )
        else:
            assert np.isnan(found[:, k]).all()
    assert summed.slices.named == tuple(
        (key, value) for key in ("time", "place") for value in sorted(set(kept[key]))
    )
    for i, (key, value) in enumerate(summed.slices.named, 3):
        rows = np.array(kept[key]) == value
        assert summed.slices.counts[i] == rows.sum()
        np.testing.assert_allclose(found[:, i], pairs[:, rows].mean(axis=1), rtol=1e-9, atol=1e-12)


def test_keys_with_too_many_values_are_left_out():
    test = features(np.random.default_rng(0), 10)
    kept = {"one": ["x"] * 10, "each": [f"{i}" for i in range(10)], "two": ["y", "z"] * 5}
    parts = [
        (
            i,
            GradientSums.of(
                test.take(rows), 3, {key: values[rows] for key, values in kept.items()}, 6
            ),
        )
        for i, rows in enumerate((slice(0, 9), slice(9, 10)))
    ]
    # The one value of "each" that the second part has is no slice of the whole.
    assert parts[0][1].slices.left_out == ("each",) and parts[1][1].slices.left_out == ()
    summed = GradientSums.add(parts, ("one", "each", "two"), 6)
    assert summed.slices.named == (
        ("one", "x"),
        ("two", "y"),
        ("two", "z"),
    ) and summed.slices.left_out == ("each",)
    assert GradientSums.add(parts, ("two", "each", "one"), 5).slices.named == (
        ("two", "y"),
        ("two", "z"),
    )
    assert summed.slices.counts.tolist() == [
        *np.bincount(test.labels[:, 0], minlength=3).tolist(),
        10,
        5,
        5,
    ]


def test_labels_are_slices_where_their_sums_are_small_enough():
    def manifest(outputs: int, units: int) -> FeatureManifest:
        return FeatureManifest(
            "features",
            "",
            {},
            (),
            {},
            "",
            "class",
            outputs,
            units,
            ("a", "b", "c"),
            (1.0,) * 3,
            (),
            {},
        )

    tuning = AuditTuning(slice_bytes=64 << 20, slice_values=256)
    for outputs, units, labels, limit in (
        (10, 129, 10, 266),
        (1, 129, 2, 258),
        (1000, 2049, 1, 1),
        (100, 600, 1, 46),
    ):
        found = manifest(outputs, units)
        assert label_slices(found, tuning) == labels
        assert slice_limit(found, tuning) == limit


@pytest.fixture(scope="module")
def sliced(tmp_path_factory) -> FeatureSet:
    """30 examples in four files, with a rare and a common key."""
    kept = [{"half": feature(i % 2), "serial": feature(f"{i:02d}")} for i in range(30)]
    return written(tmp_path_factory.mktemp("test"), [10, 5, 5, 10], kept=kept)


@pytest.mark.parametrize(
    ("tuning", "keys", "named"),
    [
        (AuditTuning(), ("half", "serial"), 32),
        (AuditTuning(groups=2), ("half",), 2),
        (AuditTuning(slice_group_bytes=0), ("half",), 2),
        (AuditTuning(slice_values=29), ("serial", "half"), 2),
        (AuditTuning(slice_values=31), ("serial", "half"), 30),
        (AuditTuning(slice_bytes=0), (), 0),
    ],
    ids=["all", "two groups", "one group", "key too large", "no room", "one slice"],
)
def test_sums_of_a_set_are_those_of_its_slices(sliced, tuning, keys, named):
    drawn = clusters(30)
    gradients = np.einsum(
        "ntc,ntd->ntcd", drawn.loss_grads.astype(float), drawn.activations.astype(float)
    )
    labels = drawn.labels[:, 0]
    texts = {"half": np.arange(30) % 2, "serial": np.arange(30)}

    def check(found):
        (sums,) = found
        slices = sums.slices
        assert len(slices.named) == named
        assert set(slices.left_out) == set(keys) - {key for key, _ in slices.named}
        masks = [labels == k for k in range(3)] if slices.labels == 3 else [labels >= 0]
        masks += [texts[key] == int(value) for key, value in slices.named]
        assert slices.counts.tolist() == [mask.sum() for mask in masks]
        for mask, own in zip(masks, sums.sums, strict=True):
            np.testing.assert_allclose(own, gradients[mask].sum(axis=0), rtol=1e-6, atol=1e-6)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create([sliced]) | SumGradients(keys, tuning), check)


def test_an_empty_test_set_is_refused(sliced):
    with (
        pytest.raises(Exception, match="nothing to influence"),
        beam.Pipeline(runner="FnApiRunner") as pipeline,
    ):
        pipeline | beam.Create([with_manifest(sliced, files=())]) | SumGradients()
