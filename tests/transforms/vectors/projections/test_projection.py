"""The projection itself: stored, in pieces, of zero gradients, scaled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic import draw, features
from tests.transforms.vectors.projections.fitting import fitted, products, scaling
from transforms.vectors.projections import methods
from transforms.vectors.projections.projection import Projection, Scaling


def test_different_learning_rates_weigh_the_checkpoints():
    rng = np.random.default_rng(0)
    one = draw(rng, 4, 3, 2, 3)
    equal = products(methods.exact(Scaling((0.1, 0.1, 0.1), False), 2, 3), one, one)
    assert not np.allclose(equal, products(methods.exact(scaling(), 2, 3), one, one), rtol=0.1)


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_stored_projection_is_the_same(method: str):
    train = draw(np.random.default_rng(8), 50, 3, 4, 6)
    made = fitted(method, train, 12, 3, unit=method == "exact")
    read = Projection.of_bytes(made.to_bytes())
    assert (read.method, read.scaling, read.dimensions, read.kept) == (
        made.method,
        made.scaling,
        made.dimensions,
        made.kept,
    )
    assert read.project(train).tobytes() == made.project(train).tobytes()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: b"", lambda data: b"PK" + data]
)
def test_bytes_that_are_no_projection_are_refused(damage):
    with pytest.raises(ValueError):
        Projection.of_bytes(damage(methods.exact(scaling(), 2, 3).to_bytes()))


def test_rows_do_not_depend_on_their_neighbours():
    train = draw(np.random.default_rng(9), 40, 3, 4, 6)
    made = fitted("auto", train, 12)
    whole = made.project(train)
    np.testing.assert_allclose(
        made.project(train, scratch_numbers=64), whole, rtol=1e-5, atol=1e-6 * np.abs(whole).max()
    )


def test_zero_gradients_are_zero_vectors():
    train = draw(np.random.default_rng(10), 10, 3, 4, 6)
    nothing = features(np.zeros((2, 3, 4)), train.activations[:2])
    for unit in (False, True):
        for made in (
            fitted("auto", train, 12, unit=unit),
            methods.exact(scaling(unit), 4, 6),
            methods.sketch(scaling(unit), 4, 6, 8, 0),
        ):
            assert not made.project(nothing).any()


def test_unit_vectors_have_length_one():
    train = draw(np.random.default_rng(11), 10, 3, 4, 6)
    lengths = np.linalg.norm(methods.exact(scaling(True), 4, 6).project(train), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_vectors_can_be_divided_by_their_length_later():
    train = draw(np.random.default_rng(14), 10, 3, 4, 6)
    plain = methods.exact(scaling(), 4, 6)
    assert plain.with_unit_length(True).scaling == scaling(True)
    assert np.array_equal(
        plain.with_unit_length(True).project(train),
        methods.exact(scaling(True), 4, 6).project(train),
    )
