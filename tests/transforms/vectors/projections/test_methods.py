"""Methods: exact vectors against a float64 brute force, unbiased ones over seeds, fitted ones
against what they are to keep.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import draw, exact_scores, features
from tests.transforms.vectors.projections.fitting import RATES, fitted, products, scaling
from transforms.scoring.influence import Scoring
from transforms.vectors.projections import methods
from transforms.vectors.projections.moments import (
    Measurements,
)
from transforms.vectors.projections.projection import Projection


@given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["none", "cosine"]),
)
@settings(deadline=None, max_examples=40)
def test_exact_vectors_multiply_to_the_influence(
    outputs: int, units: int, seed: int, normalize: str
):
    rng = np.random.default_rng(seed)
    test, train = draw(rng, 5, 3, outputs, units), draw(rng, 9, 3, outputs, units)
    projection = methods.exact(scaling(normalize == "cosine"), outputs, units)
    assert projection.dimensions == 3 * outputs * units
    expected = exact_scores(test, train, Scoring(RATES, 1, normalize))
    largest = np.sqrt(
        np.outer(
            np.diag(exact_scores(test, test, Scoring(RATES, 1))),
            np.diag(exact_scores(train, train, Scoring(RATES, 1))),
        )
    )
    tolerance = 1e-6 * (np.ones_like(expected) if normalize == "cosine" else largest)
    assert (np.abs(products(projection, test, train) - expected) <= tolerance).all()


def test_full_dimensions_lose_nothing():
    train = draw(np.random.default_rng(1), 60, 3, 4, 5)
    expected = exact_scores(train, train, Scoring(RATES, 1))
    for method in ("principal", "auto"):
        np.testing.assert_allclose(
            products(fitted(method, train, 60), train, train),
            expected,
            rtol=1e-4,
            atol=1e-4 * np.abs(expected).max(),
        )


@pytest.mark.parametrize("method", ["sketch", "random", "rest"])
def test_products_are_unbiased_over_seeds(method: str):
    rng = np.random.default_rng(2)
    test, train = draw(rng, 6, 3, 5, 9, spread=0.3), draw(rng, 8, 3, 5, 9, spread=0.3)
    expected = exact_scores(test, train, Scoring(RATES, 1))
    # Of `auto`, too, where it keeps some coordinates and sketches what they leave.
    known = Measurements.of(train, scaling())

    def made(seed: int) -> Projection:
        if method == "rest":
            return methods.with_sketched_rest(
                "auto", scaling(), known.bases, known.energies, 6, 12, seed
            )
        return (methods.sketch if method == "sketch" else methods.random)(scaling(), 5, 9, 24, seed)

    drawn = np.stack([products(made(seed), test, train) for seed in range(600)])
    deviations = (drawn.mean(axis=0) - expected) / (drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn)))
    # 48 means; a right one is more than 4.5 of its standard errors off once in 150,000 times.
    assert np.abs(deviations).max() < 4.5
    assert drawn.std(axis=0).min() > 0


def test_principal_is_biased_where_a_sketch_of_the_rest_is_not():
    train = draw(np.random.default_rng(3), 80, 3, 4, 8)
    expected = np.diag(exact_scores(train, train, Scoring(RATES, 1)))
    assert (np.diag(products(fitted("principal", train, 8), train, train)) < expected).all()


def test_principal_keeps_the_coordinates_of_most_energy():
    rng = np.random.default_rng(4)
    train = draw(rng, 300, 3, 4, 8, spread=0.5)
    errors = []
    for dimensions in (4, 16, 48, 96):
        off = products(fitted("principal", train, dimensions), train, train) - exact_scores(
            train, train, Scoring(RATES, 1)
        )
        errors.append(np.sqrt(np.square(off).mean()))
    assert errors == sorted(errors, reverse=True)
    # No choice of as many coordinates in the same bases keeps more of the sum of squared lengths.
    energies = np.concatenate(
        [energy.ravel() for energy in Measurements.of(train, scaling()).energies]
    )
    kept = np.square(fitted("principal", train, 16).project(train).astype(np.float64)).sum()
    np.testing.assert_allclose(kept, np.sort(energies)[-16:].sum(), rtol=1e-4)


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    train = draw(np.random.default_rng(7), 50, 3, 4, 6)
    for make in (
        lambda seed: methods.random(scaling(), 4, 6, 12, seed),
        lambda seed: methods.sketch(scaling(), 4, 6, 12, seed),
    ):
        assert make(1).to_bytes() == make(1).to_bytes() != make(2).to_bytes()
    assert fitted("auto", train, 12, 1).to_bytes() == fitted("auto", train, 12, 1).to_bytes()


def test_auto_sketches_where_that_finds_more_of_a_sample():
    rng = np.random.default_rng(13)
    # Twenty examples again and again: far from each other in too many directions for the
    # coordinates of a few of them.
    loss_grads, activations, again = (
        rng.normal(size=(20, 3, 6)),
        rng.normal(size=(20, 3, 40)),
        rng.integers(0, 20, 400),
    )
    train = features(loss_grads[again], activations[again])
    made = fitted("auto", train, 24)
    assert made.sketch is not None and made.dimensions == 24
    assert methods.recall_in_sample(made, train) > methods.recall_in_sample(
        fitted("principal", train, 24), train
    )
    # And such as lie in few directions.
    few = features(
        rng.normal(size=(400, 3, 2)) @ rng.normal(size=(2, 6)),
        rng.normal(size=(400, 3, 3)) @ rng.normal(size=(3, 40)),
    )
    assert fitted("auto", few, 60).sketch is None


@pytest.mark.parametrize(
    ("method", "dimensions", "message"),
    [
        ("auto", 73, "more than the 72 of exact vectors"),
        ("random", 2, "one for each of the 3 checkpoints"),
    ],
)
def test_dimensions_that_cannot_be_are_refused(method: str, dimensions: int, message: str):
    with pytest.raises(ValueError, match=message):
        methods.check_dimensions(method, dimensions, 3, 4, 6)
    methods.check_dimensions(method, 72, 3, 4, 6)


@pytest.mark.parametrize(("dimensions", "expected"), [(72, 72), (24, 24), (3, 3), (50, 48)])
def test_random_projections_have_at_most_the_dimensions_asked_for(dimensions: int, expected: int):
    assert methods.random(scaling(), 4, 6, dimensions, 0).dimensions == expected
