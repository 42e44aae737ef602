"""Vector instructions: the same numbers as NumPy's, and sums in the written order."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from transforms.core.summation import lane_sum
from transforms.scoring.kernels.simd import (
    GROUP_SIZE,
    QUAD,
    at_least,
    at_most,
    count_bits,
    dots,
    load_float64,
    lowest_bit,
    score_quad,
)


@numba.njit
def bits(mask: np.uint64) -> tuple[int, int]:
    return lowest_bit(mask), count_bits(mask)


@numba.njit
def masks(values: np.ndarray, level: np.float32) -> tuple[np.uint64, np.uint64]:
    return at_least(values.ctypes.data, level), at_most(values.ctypes.data, level)


@numba.njit
def entry(values: np.ndarray, index: int) -> float:
    return load_float64(values.ctypes.data, index)


@numba.njit
def products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = np.empty(QUAD)
    a = y.ctypes.data
    step = np.uintp(4 * y.shape[1])
    dots(
        x.ctypes.data,
        a,
        a + step,
        a + step + step,
        a + step + step + step,
        len(x),
        found.ctypes.data,
    )
    return found


@numba.njit
def scores(loss_grads: np.ndarray, activations: np.ndarray, rates: np.ndarray) -> np.ndarray:
    totals = np.empty(QUAD)
    g, step = loss_grads.ctypes.data, np.uintp(4 * loss_grads[0].size)
    h, other = activations.ctypes.data, np.uintp(4 * activations[0].size)
    score_quad(
        len(rates),
        (g, g + step, g + step * np.uintp(2), g + step * np.uintp(3), g + step * np.uintp(4)),
        loss_grads.shape[2],
        (h, h + other, h + other * np.uintp(2), h + other * np.uintp(3), h + other * np.uintp(4)),
        activations.shape[2],
        rates.ctypes.data,
        totals.ctypes.data,
    )
    return totals


@pytest.mark.parametrize("mask", [1, 1 << 63, 0b1011000, (1 << 64) - 1])
def test_bits_are_counted_and_found(mask: int) -> None:
    lowest = next(i for i in range(64) if mask >> i & 1)
    assert bits(np.uint64(mask)) == (lowest, mask.bit_count())


def test_a_mask_has_a_bit_for_each_value_that_passes() -> None:
    values = np.random.default_rng(1).integers(-3, 4, GROUP_SIZE).astype(np.float32)
    values[[3, 60]] = np.nan
    least, most = masks(values, np.float32(1))
    assert [int(least) >> i & 1 for i in range(GROUP_SIZE)] == (values >= 1).tolist()
    assert [int(most) >> i & 1 for i in range(GROUP_SIZE)] == (values <= 1).tolist()
    assert entry(values.astype(np.float64), 5) == values[5]


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 32, 129, 1000])
def test_products_are_added_in_the_written_order(n: int) -> None:
    rng = np.random.default_rng(n)
    x = (rng.normal(size=n) * 10.0 ** rng.integers(-9, 9, n)).astype(np.float32)
    y = rng.normal(size=(QUAD, n)).astype(np.float32)
    expected = lane_sum(x.astype(np.float64) * y.astype(np.float64))
    assert products(x, y).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("c", "d"), [(1, 1), (10, 129), (33, 16)])
def test_scores_of_four_are_the_sums_over_checkpoints(c: int, d: int) -> None:
    rng = np.random.default_rng(c)
    loss_grads = rng.normal(size=(1 + QUAD, 3, c)).astype(np.float32)
    activations = rng.normal(size=(1 + QUAD, 3, d)).astype(np.float32)
    rates = np.array([0.1, 0.02, 0.3])
    expected = np.zeros(QUAD)
    for t, rate in enumerate(rates):
        parts = [
            lane_sum(side[0, t].astype(np.float64) * side[1:, t].astype(np.float64))
            for side in (loss_grads, activations)
        ]
        expected += rate * (parts[0] * parts[1])
    assert scores(loss_grads, activations, rates).tobytes() == expected.tobytes()
