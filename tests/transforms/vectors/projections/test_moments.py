"""Measurements: sums over parts are those of the whole."""

from __future__ import annotations

import numpy as np

from tests.synthetic import draw, exact_scores
from tests.transforms.vectors.projections.fitting import RATES
from transforms.scoring.influence import Scoring
from transforms.vectors.projections.moments import (
    SecondMoments,
    Strongest,
    energies,
)


def test_energies_are_sums_of_squared_coordinates():
    rng = np.random.default_rng(5)
    loss_grads, activations = (
        rng.normal(size=(20, 3)).astype(np.float32),
        rng.normal(size=(20, 4)).astype(np.float32),
    )
    one, other = SecondMoments.of(loss_grads, activations).bases()
    expected = np.zeros((3, 4))
    for example in range(20):
        expected += np.outer(loss_grads[example] @ one, activations[example] @ other) ** 2
    np.testing.assert_allclose(energies(loss_grads, activations, (one, other)), expected, rtol=1e-5)
    np.testing.assert_allclose(one.T @ one, np.eye(3), atol=1e-6)


def test_moments_add_up():
    rng = np.random.default_rng(6)
    loss_grads, activations = rng.normal(size=(20, 3)), rng.normal(size=(20, 4))
    whole = SecondMoments.of(loss_grads, activations)
    parts = SecondMoments.of(loss_grads[:7], activations[:7]) + SecondMoments.of(
        loss_grads[7:], activations[7:]
    )
    np.testing.assert_allclose(parts.activations, whole.activations, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        whole.activations,
        sum((d @ d) * np.outer(h, h) for d, h in zip(loss_grads, activations, strict=True)),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        whole.loss_grads,
        sum((h @ h) * np.outer(d, d) for d, h in zip(loss_grads, activations, strict=True)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_strongest_are_the_same_in_any_grouping():
    train = draw(np.random.default_rng(12), 30, 3, 4, 6)
    whole = Strongest.of(train, RATES, 0, limit=7)
    parts = [
        Strongest.of(train.take(slice(start, start + 10)), RATES, start, limit=7)
        for start in (0, 10, 20)
    ]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = parts[order[0]] + parts[order[1]] + parts[order[2]]
        assert merged.rows.tolist() == whole.rows.tolist()
    own = np.diag(exact_scores(train, train, Scoring(RATES, 1)))
    assert whole.rows.tolist() == sorted(np.argsort(-own)[:7].tolist())
