"""Heaps of candidates: what they hold is what sorting would keep."""

from __future__ import annotations

import numba
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.scoring.kernels.heaps import (
    float32_levels,
    keep_best,
    nth_largest,
    sift,
    take_best,
    threshold_of,
)
from transforms.scoring.kernels.layout import NO_COLUMN, Pool


@numba.njit
def fill(pool: Pool, scores: np.ndarray, ranks: np.ndarray) -> None:
    for j in range(len(scores)):
        pool.filled[0, 0] = keep_best(
            pool.scores[0, 0], pool.rows[0, 0], pool.filled[0, 0], scores[j], j, ranks
        )


@numba.njit
def threshold(pool: Pool, divisor: float) -> float:
    return threshold_of(pool, 0, 0, divisor)


@numba.njit
def sorted_by_sifting(bounds: np.ndarray, listed: np.ndarray) -> np.ndarray:
    n = len(bounds)
    for slot in range(n // 2 - 1, -1, -1):
        sift(bounds, listed, slot, n)
    taken = np.empty(n, np.int32)
    for i in range(n):
        taken[i] = listed[0]
        bounds[0], listed[0] = bounds[n - 1 - i], listed[n - 1 - i]
        sift(bounds, listed, 0, n - 1 - i)
    return taken


@numba.njit
def nth(values: np.ndarray, n: int) -> float:
    return nth_largest(values, n)


@numba.njit
def levels(limit: float, scale: float, margin: float) -> tuple[np.float32, np.float32]:
    return float32_levels((limit, -limit), scale, margin)


def empty_pool(k: int) -> Pool:
    return Pool(
        np.zeros((2, 1, k)),
        np.zeros((2, 1, k), np.int32),
        np.zeros((2, 1), np.int64),
        np.zeros((2, 1)),
        np.empty((2, 1, 4)),
        np.empty((2, 1, 4), np.int32),
        np.zeros((2, 1), np.int64),
        np.full((2, 1, 1), NO_COLUMN, np.int32),
        np.zeros((1, 3), np.int64),
    )


# Few values, so that many are equal.
SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.7, 1e-300, 5.0]), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(scores=SCORES, k=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_best_are_kept_by_score_and_rank(scores, k, seed) -> None:
    pool, ranks = empty_pool(k), np.random.default_rng(seed).permutation(len(scores))
    fill(pool, np.array(scores), ranks.astype(np.int32))
    expected = sorted(range(len(scores)), key=lambda j: (-scores[j], ranks[j]))[:k]
    if len(scores) >= k:
        worst = scores[expected[-1]]
        assert worst * 3 * (1 - 1e-11) < threshold(pool, 3.0) < worst * 3
    rows, found, trains = take_best(pool, ranks.astype(np.int32), 0)
    assert trains.tolist() == expected and (rows == 0).all()
    assert found.tolist() == [scores[j] for j in expected]
    assert pool.filled.sum() == 0


@settings(max_examples=60, deadline=None)
@given(bounds=SCORES)
def test_bounds_come_largest_first(bounds) -> None:
    taken = sorted_by_sifting(np.array(bounds), np.arange(len(bounds), dtype=np.int32))
    assert sorted(taken) == list(range(len(bounds)))
    assert [bounds[j] for j in taken] == sorted(bounds, reverse=True)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), values=SCORES)
def test_the_nth_value_is_that_of_sorting(data, values) -> None:
    n = data.draw(st.integers(0, len(values) - 1))
    assert nth(np.array(values), n) == sorted(values)[n]


@settings(max_examples=100, deadline=None)
@given(
    limit=st.floats(-1e30, 1e30),
    scale=st.floats(1e-3, 1e3),
    margin=st.floats(0, 1),
)
def test_no_float32_that_reaches_a_limit_is_below_its_level(limit, scale, margin) -> None:
    for level, exact in zip(levels(limit, scale, margin), (limit, -limit), strict=True):
        below = np.nextafter(np.float32(level), np.float32(-np.inf))
        assert float(below) < exact / scale - margin
