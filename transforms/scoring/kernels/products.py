"""The dense search: float32 products of all pairs, and canonical scores of candidates within the
margin.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.heaps import float32_levels, nth_largest, threshold_of
from transforms.scoring.kernels.layout import (
    CANDIDATES_AT_ONCE,
    ColumnGroups,
    Pool,
    Sides,
    columns_of_group,
    count_parts,
    part_of_sum,
)
from transforms.scoring.kernels.pairs import (
    Scorer,
    allocate_work,
    hold_work,
    score_candidates,
    scorer_of,
)
from transforms.scoring.kernels.register_tiles import (
    AHEAD,
    TILE_ROWS,
    add_products,
    add_scaled_products,
)
from transforms.scoring.kernels.simd import (
    GROUP_SIZE,
    at_least,
    at_most,
    borrowed,
    load_float64,
    lowest_bit,
)

# Rows that share a group of training columns, which the processor's cache then holds: eight
# register tiles.
_ROWS_AT_ONCE = 8 * TILE_ROWS


class Operands(NamedTuple):
    """Scaled vectors whose float32 products are scores, over N and the column group's scale.

    Attributes:
        loss_grads: [n, T, C] float32, `√η_t ‖ĥ_t‖ δ_t` over N, of the pool's rows.
        activations: [n, T, D] float32, of length 1, likewise.
        groups: training examples.
        group_activations: [G, T, D, GROUP_SIZE] float32, theirs, of length 1.
        margin: the largest error of a product.
        width: twice the largest error of any product of the search, over N alone.
    """

    loss_grads: np.ndarray
    activations: np.ndarray
    groups: ColumnGroups
    group_activations: np.ndarray
    margin: float
    width: float


@compiled()
def multiply_rows(
    loss_grads: np.ndarray,
    activations: np.ndarray,
    first: int,
    last: int,
    train_loss_grads: np.ndarray,
    train_activations: np.ndarray,
    group: int,
    sums: np.ndarray,
) -> None:
    """Computes `Σ_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)` in float32 of rows `first` to `last` with a group's
    columns, into sums [_ROWS_AT_ONCE, GROUP_SIZE].

    loss_grads [n, T, C] and activations [n, T, D] are of rows, those of training examples [G, T, C
    or D, GROUP_SIZE] of column groups.
    """
    checkpoints, outputs, units = loss_grads.shape[1], loss_grads.shape[2], activations.shape[2]
    products = np.empty((_ROWS_AT_ONCE, GROUP_SIZE), np.float32)
    sums[:] = 0
    rows = np.empty(TILE_ROWS, np.uintp)
    addresses = rows.ctypes.data
    for t in range(checkpoints):
        products[:] = 0
        vector = group * checkpoints + t
        # Part after part: their sums are short, and the part of the group is in the cache for all
        # register tiles.
        for part in range(count_parts(outputs)):
            start, width = part_of_sum(outputs, part)
            columns = train_loss_grads.ctypes.data + np.uintp(
                4 * GROUP_SIZE * (vector * outputs + start)
            )
            for tile in range(first, last, TILE_ROWS):
                _row_addresses(loss_grads, tile, last, t, start, rows)
                target = products.ctypes.data + np.uintp(4 * GROUP_SIZE * (tile - first))
                ahead = _ahead(columns, width, (tile - first) // TILE_ROWS)
                add_products(addresses, width, columns, ahead, target)
        for part in range(count_parts(units)):
            start, width = part_of_sum(units, part)
            columns = train_activations.ctypes.data + np.uintp(
                4 * GROUP_SIZE * (vector * units + start)
            )
            for tile in range(first, last, TILE_ROWS):
                _row_addresses(activations, tile, last, t, start, rows)
                offset = np.uintp(4 * GROUP_SIZE * (tile - first))
                factors, target = products.ctypes.data + offset, sums.ctypes.data + offset
                ahead = _ahead(columns, width, (tile - first) // TILE_ROWS)
                add_scaled_products(addresses, width, columns, ahead, factors, target)


@inlined(forceinline=True)
def _ahead(columns: int, width: int, turn: int) -> Any:
    """Returns the address of the bytes that a register tile, the turn-th of a part of a group,
    brings into the cache: of the next part, which follows in memory.
    """
    return columns + np.uintp(4 * GROUP_SIZE * width + AHEAD * width * turn)


@inlined(forceinline=True)
def _row_addresses(
    vectors: np.ndarray, first: int, last: int, t: int, start: int, addresses: np.ndarray
) -> None:
    """Writes the addresses of entries `start` on of checkpoint t of rows `first` on of vectors
    [n, T, R]; beyond `last`, of the last row.
    """
    _, checkpoints, width = vectors.shape
    for i in range(TILE_ROWS):
        row = min(first + i, last - 1)
        addresses[i] = vectors.ctypes.data + np.uintp(4 * ((row * checkpoints + t) * width + start))


@compiled()
def search_products(
    pool: Pool, first: int, last: int, start: int, stop: int, sides: Sides, operands: Operands
) -> None:
    """Multiplies all pairs of the pool's rows `first` to `last` with groups `start` to `stop` and
    searches them.
    """
    held = allocate_work(len(sides.rates))
    scorer = scorer_of(sides, held)
    pool, operands, test = borrowed(pool), borrowed(operands), borrowed(sides.test)
    groups, width = operands.groups, operands.width
    room = pool.bounds.shape[2] - GROUP_SIZE
    sums = np.empty((_ROWS_AT_ONCE, GROUP_SIZE), np.float32)
    for group in range(start, stop):
        for begin in range(first, last, _ROWS_AT_ONCE):
            end = min(begin + _ROWS_AT_ONCE, last)
            multiply_rows(
                operands.loss_grads,
                operands.activations,
                begin,
                end,
                groups.loss_grads,
                operands.group_activations,
                group,
                sums,
            )
            for i in range(begin, end):
                row = sides.rows[i]
                norm, divisor = test.norm[row], test.divisors[row]
                limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
                scale = groups.scales[group] * norm
                levels = float32_levels(limits, scale, operands.margin)
                address = sums.ctypes.data + np.uintp(4 * GROUP_SIZE * (i - begin))
                for sign in range(2):
                    mask = (
                        at_least(address, levels[0]) if sign == 0 else at_most(address, -levels[1])
                    ) & columns_of_group(groups, group)
                    if not mask:
                        continue
                    _list_passing(pool, sign, i, operands, group, mask, sums, i - begin, scale)
                    if pool.counts[sign, i] > room:
                        _sharpen(pool, sign, i, width * norm, divisor)
                        if pool.counts[sign, i] > room // 2:
                            _settle(pool, sign, i, row, scorer)
    hold_work(held)


@inlined(forceinline=True)
def _list_passing(
    pool: Pool,
    sign: int,
    i: int,
    operands: Operands,
    group: int,
    mask: np.uint64,
    products: np.ndarray,
    slot: int,
    scale: float,
) -> None:
    """Lists the columns of a bit mask as candidates, with their bounds from row `slot` of
    `products` [_ROWS_AT_ONCE, GROUP_SIZE].
    """
    listed = pool.counts[sign, i]
    while mask:
        column = lowest_bit(mask)
        mask &= mask - np.uint64(1)
        value = np.float64(products[slot, column])
        bound = ((value if sign == 0 else -value) + operands.margin) * scale
        pool.bounds[sign, i, listed] = bound
        pool.listed[sign, i, listed] = operands.groups.columns[group * GROUP_SIZE + column]
        listed += 1
    pool.counts[sign, i] = listed


@inlined()
def _sharpen(pool: Pool, sign: int, i: int, width: float, divisor: float) -> None:
    """Raises the floor of row i to what its listed candidates prove, whose scores are at most
    `width` below their bounds, and drops those below it.
    """
    bounds, listed = pool.bounds[sign, i], pool.listed[sign, i]
    k, n = pool.scores.shape[2], pool.counts[sign, i]
    if n >= k:
        proven = (nth_largest(bounds[:n].copy(), n - k) - width) / divisor
        pool.floors[sign, i] = max(pool.floors[sign, i], proven * (1 - 1e-12))
    limit = threshold_of(pool, sign, i, divisor)
    count = 0
    for slot in range(n):
        if bounds[slot] >= limit:
            bounds[count], listed[count] = bounds[slot], listed[slot]
            count += 1
    pool.counts[sign, i] = count


@inlined()
def _settle(pool: Pool, sign: int, i: int, row: int, scorer: Scorer) -> None:
    """Scores the listed candidates of the pool's row i (test row `row`) whose bounds reach the
    threshold.
    """
    divisor = load_float64(scorer.test.divisors, row)
    count = 0
    for slot in range(pool.counts[sign, i]):
        if pool.bounds[sign, i, slot] >= threshold_of(pool, sign, i, divisor):
            scorer.work.codes[count] = 2 * np.int64(pool.listed[sign, i, slot]) + sign
            count += 1
            if count == CANDIDATES_AT_ONCE:
                score_candidates(pool, i, row, scorer, count)
                count = 0
    score_candidates(pool, i, row, scorer, count)
    pool.counts[sign, i] = 0


@compiled()
def settle_rows(pool: Pool, first: int, last: int, sides: Sides, width: float) -> None:
    """Scores the candidates that are still listed for the pool's rows `first` to `last`; `width` as
    in `Operands`.
    """
    held = allocate_work(len(sides.rates))
    scorer = scorer_of(sides, held)
    pool, test = borrowed(pool), borrowed(sides.test)
    for i in range(first, last):
        row = sides.rows[i]
        for sign in range(2):
            _sharpen(pool, sign, i, width * test.norm[row], test.divisors[row])
            _settle(pool, sign, i, row, scorer)
    hold_work(held)
