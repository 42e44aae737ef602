"""Scores against their definition, and float32 against its proven margins."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic import draw, exact_scores, features
from transforms.core.features import Features
from transforms.scoring.error_bounds import product_margin
from transforms.scoring.influence import NORMALIZATIONS, Scoring, canonical_scores, self_influence


def all_pairs(test: Features, train: Features) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(len(test) * len(train)), len(train))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_canonical_scores_are_the_definition(normalize):
    rng = np.random.default_rng(0)
    test, train = draw(rng, 13, 3, 4, 7), draw(rng, 29, 3, 4, 7)
    scoring = Scoring((0.1, 0.02, 0.003), 5, normalize)
    scores = canonical_scores(test, train, *all_pairs(test, train), scoring).reshape(13, 29)
    exact = exact_scores(test, train, scoring)
    np.testing.assert_allclose(scores, exact, rtol=1e-10, atol=1e-13 * np.abs(exact).max())


def test_closed_form_of_a_linear_regression():
    # y = w x, squared loss, label x: the gradient of example i at checkpoint t is 2 (w_t − 1) i ·
    # i, so score(i, j) = Σ_t 4 i² j² (w_t − 1)² with every η = 1.
    w = np.array([0.0, 0.5, 0.9])
    x = np.arange(1, 6)
    side = features(
        (2 * (w[None, :] - 1) * x[:, None])[..., None], np.repeat(x[:, None, None], 3, axis=1)
    )
    scores = canonical_scores(
        side, side, *all_pairs(side, side), Scoring((1.0, 1.0, 1.0), 3)
    ).reshape(5, 5)
    expected = 4 * x[:, None] ** 2 * x[None, :] ** 2 * np.sum((w - 1) ** 2)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_identity_features_score_on_the_diagonal_only():
    side = features(np.ones((4, 2, 1)), np.repeat(np.eye(4)[:, None, :], 2, axis=1))
    scores = canonical_scores(side, side, *all_pairs(side, side), Scoring((0.5, 0.25), 3)).reshape(
        4, 4
    )
    np.testing.assert_array_equal(scores, 0.75 * np.eye(4))


def test_the_sum_over_checkpoints_is_outside_the_product():
    # The product of sums, (Σ_t δ·δ')(Σ_t h·h'), is the error of the original notebook: it must give
    # another number here.
    rng = np.random.default_rng(1)
    test, train = draw(rng, 5, 3, 4, 6, spread=0), draw(rng, 5, 3, 4, 6, spread=0)
    scores = canonical_scores(
        test, train, *all_pairs(test, train), Scoring((1.0, 1.0, 1.0), 3)
    ).reshape(5, 5)
    wrong = np.einsum("itc,jtc->ij", test.loss_grads, train.loss_grads) * np.einsum(
        "itd,jtd->ij", test.activations, train.activations
    )
    assert np.abs(scores - wrong).max() > 0.1 * np.abs(scores).max()
    np.testing.assert_allclose(
        scores, exact_scores(test, train, Scoring((1.0, 1.0, 1.0), 3)), rtol=1e-9, atol=1e-9
    )


def test_a_canonical_score_depends_on_its_two_records_alone():
    rng = np.random.default_rng(2)
    test, train = draw(rng, 7, 2, 5, 33), draw(rng, 900, 2, 5, 33)
    scoring = Scoring((0.3, 0.1), 5, "cosine")
    together = canonical_scores(test, train, *all_pairs(test, train), scoring).reshape(7, 900)
    for i, j in ((0, 0), (3, 511), (6, 899)):
        alone = canonical_scores(
            test.take([i]), train.take([j]), np.array([0]), np.array([0]), scoring
        )
        assert alone.tobytes() == together[i, j].tobytes()


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.1, 0.003)])
def test_self_influence_is_the_diagonal(rates):
    side = draw(np.random.default_rng(3), 40, 2, 4, 9)
    diagonal = canonical_scores(side, side, np.arange(40), np.arange(40), Scoring(rates, 1))
    np.testing.assert_allclose(self_influence(side, rates), diagonal, rtol=1e-13)


def test_cosine_of_an_example_with_itself_is_one_and_no_score_is_larger():
    side = draw(np.random.default_rng(4), 30, 3, 4, 8)
    scores = canonical_scores(
        side, side, *all_pairs(side, side), Scoring((0.1, 0.1, 0.2), 1, "cosine")
    ).reshape(30, 30)
    np.testing.assert_allclose(np.diag(scores), 1, rtol=1e-13)
    assert np.abs(scores).max() <= 1 + 1e-13


def test_float32_is_refused_where_it_proves_nothing():
    with pytest.raises(ValueError, match="too many"):
        product_margin(3, 10, 10**9)
