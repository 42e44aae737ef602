"""Heaps of the best candidates of a test example, ordered by canonical score and id."""

from __future__ import annotations

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.layout import Pool
from transforms.scoring.kernels.simd import borrowed


@inlined(inline="always")
def threshold_of(pool: Pool, sign: int, i: int, divisor: float) -> float:
    """Returns the threshold of `Pool.bounds`.

    A candidate below it is not among the k best; one that equals it may be, by its id.
    """
    limit = pool.floors[sign, i]
    if pool.filled[sign, i] == pool.scores.shape[2]:
        limit = max(limit, pool.scores[sign, i, 0])
    return limit * divisor * (1 - 1e-12)


@inlined(forceinline=True)
def _worse(scores: np.ndarray, rows: np.ndarray, ranks: np.ndarray, a: int, b: int) -> bool:
    return scores[a] < scores[b] or (scores[a] == scores[b] and ranks[rows[a]] > ranks[rows[b]])


@inlined()
def keep_best(
    scores: np.ndarray, rows: np.ndarray, n: int, score: float, row: int, ranks: np.ndarray
) -> int:
    """Puts a scored candidate into a heap of n, if it is one of the best; returns the heap's new
    size.
    """
    if n < len(scores):
        slot = n
        scores[slot], rows[slot] = score, row
        while slot > 0:
            parent = (slot - 1) // 2
            if not _worse(scores, rows, ranks, slot, parent):
                break
            scores[slot], scores[parent] = scores[parent], scores[slot]
            rows[slot], rows[parent] = rows[parent], rows[slot]
            slot = parent
        return n + 1
    if score > scores[0] or (score == scores[0] and ranks[row] < ranks[rows[0]]):
        scores[0], rows[0] = score, row
        _sink(scores, rows, ranks, n)
    return n


@inlined()
def _sink(scores: np.ndarray, rows: np.ndarray, ranks: np.ndarray, n: int) -> None:
    """Moves the top of a heap of n down to where it belongs."""
    slot = 0
    while True:
        child = 2 * slot + 1
        if child >= n:
            return
        if child + 1 < n and _worse(scores, rows, ranks, child + 1, child):
            child += 1
        if not _worse(scores, rows, ranks, child, slot):
            return
        scores[slot], scores[child] = scores[child], scores[slot]
        rows[slot], rows[child] = rows[child], rows[slot]
        slot = child


@inlined()
def sift(bounds: np.ndarray, listed: np.ndarray, slot: int, n: int) -> None:
    """Moves an entry of a heap of n bounds, largest on top, down to where it belongs."""
    while True:
        child = 2 * slot + 1
        if child >= n:
            return
        if child + 1 < n and bounds[child + 1] > bounds[child]:
            child += 1
        if bounds[child] <= bounds[slot]:
            return
        bounds[slot], bounds[child] = bounds[child], bounds[slot]
        listed[slot], listed[child] = listed[child], listed[slot]
        slot = child


@inlined(forceinline=True)
def float32_levels(
    limits: tuple[float, float], scale: float, margin: float
) -> tuple[np.float32, np.float32]:
    """Returns the levels of either sign that float32 bounds over `scale`, off by at most `margin`,
    are compared with.
    """
    return _level(limits[0] / scale - margin), _level(limits[1] / scale - margin)


@inlined(forceinline=True)
def _level(limit: float) -> np.float32:
    """Returns a limit as float32, rounded down."""
    return np.float32(limit - 2e-7 * abs(limit))


@inlined()
def nth_largest(values: np.ndarray, n: int) -> float:
    """Returns the value that sorting would put at index n; reorders the values.

    `np.partition` takes longer to compile than all else.
    """
    low, high = 0, len(values) - 1
    while low < high:
        pivot = values[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        # Between the two indices, all values are the pivot.
        if n <= right:
            high = right
        elif n >= left:
            low = left
        else:
            break
    return values[n]


@compiled()
def take_best(
    pool: Pool, ranks: np.ndarray, sign: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empties the heaps of a sign: returns rows of the pool [P] int32, scores [P] and training rows
    [P], by row and best first.
    """
    pool, ranks = borrowed(pool), borrowed(ranks)
    total = pool.filled[sign].sum()
    pool_rows, scores, trains = (
        np.empty(total, np.int32),
        np.empty(total),
        np.empty(total, np.int32),
    )
    start = 0
    for i in range(pool.filled.shape[1]):
        n = pool.filled[sign, i]
        heap, rows = pool.scores[sign, i], pool.rows[sign, i]
        for last in range(n - 1, -1, -1):
            # The worst goes last.
            slot = start + last
            pool_rows[slot], scores[slot], trains[slot] = i, heap[0], rows[0]
            heap[0], rows[0] = heap[last], rows[last]
            _sink(heap, rows, ranks, last)
        pool.filled[sign, i] = 0
        start += n
    return pool_rows, scores, trains
