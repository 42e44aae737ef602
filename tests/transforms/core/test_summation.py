"""Sums whose bits do not depend on the array around them, and norms."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transforms.core.summation import LANES, lane_sum, norms


def test_norms_are_those_of_numpy_in_float64() -> None:
    vectors = np.random.default_rng(1).normal(size=(6, 4, 129)).astype(np.float32) * np.float32(
        1e-25
    )
    lengths = norms(vectors)
    assert lengths.dtype == np.float64 and lengths.shape == (6, 4)
    np.testing.assert_allclose(
        lengths, np.linalg.norm(vectors.astype(np.float64), axis=-1), rtol=1e-15
    )
    assert (lengths > 0).all()  # whose squares underflow in float32


def test_norms_of_many_vectors_are_those_of_each() -> None:
    # More than are added at once.
    vectors = np.random.default_rng(2).normal(size=(350, 3, 21)).astype(np.float32)
    assert (
        norms(vectors).tobytes()
        == np.array([[norms(vector) for vector in row] for row in vectors]).tobytes()
    )
    for shape in ((0, 3, 5), (4, 2, 0)):
        assert norms(np.empty(shape, np.float32)).tolist() == np.zeros(shape[:-1]).tolist()


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.integers(0, 70), elements=st.floats(-1e100, 1e100)))
def test_the_sum_is_within_a_rounding_per_addition_of_the_exact_one(terms: np.ndarray) -> None:
    exact, size = math.fsum(terms), math.fsum(np.abs(terms))
    depth = math.ceil(len(terms) / LANES) + math.log2(LANES)
    assert abs(float(lane_sum(terms)) - exact) <= depth * 2.0**-53 * size * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 9), st.integers(0, 40)),
        elements=st.floats(-1e10, 1e10),
    )
)
def test_a_sums_bits_do_not_depend_on_the_array_around_it(terms: np.ndarray) -> None:
    together = lane_sum(terms)
    for i, row in enumerate(terms):
        assert together[i].tobytes() == np.asarray(lane_sum(row)).tobytes()
    strided = np.asfortranarray(terms)
    assert lane_sum(strided.copy(order="F")).tobytes() == together.tobytes()
    assert (
        lane_sum(np.broadcast_to(terms, (3, *terms.shape)).copy())[1].tobytes()
        == together.tobytes()
    )


def test_the_order_of_additions_is_the_written_one() -> None:
    # Lane 0 holds terms 0 and 16; folding adds lane 8 to it, then 4 (with 12), 2 and 1.
    one, big = 1.0, 1e16
    terms = np.zeros(17)
    terms[[0, 16, 8]] = one, big, -big
    assert lane_sum(terms) == (one + big) + -big == 0
    terms[[0, 16, 8]] = big, -big, one
    assert lane_sum(terms) == 1
    terms[:] = 0
    terms[[0, 8, 4, 12]] = one, big, one, -big
    assert lane_sum(terms) == (one + big) + (one + -big) == 0
