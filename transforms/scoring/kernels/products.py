"""The dense way: float32 products of all pairs, and exact scores of those within the margin."""

from __future__ import annotations

from typing import Any

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.heaps import float32_levels, nth_largest, threshold_of
from transforms.scoring.kernels.layout import (
    CANDIDATES_AT_ONCE,
    Addresses,
    Blocks,
    Factors,
    Pool,
    addresses_of,
    columns_of_block,
    count_parts,
    part_of_sum,
)
from transforms.scoring.kernels.pairs import Work, allocate_work, hold_work, score_candidates
from transforms.scoring.kernels.simd import (
    AHEAD,
    BLOCK,
    TILE,
    add_block,
    add_scaled_block,
    at_least,
    at_most,
    borrowed,
    load_float64,
    lowest_bit,
)

# Tiles of test rows that share a block of training columns, which the processor's cache then holds.
_TILES = 8


@compiled()
def multiply_rows(
    loss_grads: np.ndarray,
    activations: np.ndarray,
    first: int,
    last: int,
    train_loss_grads: np.ndarray,
    train_activations: np.ndarray,
    block: int,
    sums: np.ndarray,
) -> None:
    """`Σ_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)` in float32 of rows `first` to `last` with the columns of a
    block, into sums [_TILES * TILE, BLOCK].

    loss_grads [n, T, C] and activations [n, T, D] are of rows, those of training examples [B, T, C
    or D, BLOCK] of blocks.
    """
    checkpoints, outputs, units = loss_grads.shape[1], loss_grads.shape[2], activations.shape[2]
    products = np.empty((_TILES * TILE, BLOCK), np.float32)
    sums[:] = 0
    rows = np.empty(TILE, np.uintp)
    addresses = rows.ctypes.data
    for t in range(checkpoints):
        products[:] = 0
        place = block * checkpoints + t
        # Part after part: their sums are short, and the part of the block is in the cache for all
        # tiles.
        for part in range(count_parts(outputs)):
            start, width = part_of_sum(outputs, part)
            columns = train_loss_grads.ctypes.data + np.uintp(4 * BLOCK * (place * outputs + start))
            for tile in range(first, last, TILE):
                _row_addresses(loss_grads, tile, last, t, start, rows)
                target = products.ctypes.data + np.uintp(4 * BLOCK * (tile - first))
                ahead = _ahead(columns, width, (tile - first) // TILE)
                add_block(addresses, width, columns, ahead, target)
        for part in range(count_parts(units)):
            start, width = part_of_sum(units, part)
            columns = train_activations.ctypes.data + np.uintp(4 * BLOCK * (place * units + start))
            for tile in range(first, last, TILE):
                _row_addresses(activations, tile, last, t, start, rows)
                offset = np.uintp(4 * BLOCK * (tile - first))
                factors, target = products.ctypes.data + offset, sums.ctypes.data + offset
                ahead = _ahead(columns, width, (tile - first) // TILE)
                add_scaled_block(addresses, width, columns, ahead, factors, target)


@inlined(forceinline=True)
def _ahead(columns: int, width: int, turn: int) -> Any:
    """The address of what a tile, the turn-th of a part of a block, brings into the cache of the
    next part, which follows in memory.
    """
    return columns + np.uintp(4 * BLOCK * width + AHEAD * width * turn)


@inlined(forceinline=True)
def _row_addresses(
    vectors: np.ndarray, first: int, last: int, t: int, start: int, addresses: np.ndarray
) -> None:
    """The addresses of entries `start` on of checkpoint t of rows `first` on of vectors [n, T, R];
    beyond `last`, of the last row.
    """
    _, checkpoints, width = vectors.shape
    for place in range(TILE):
        row = min(first + place, last - 1)
        addresses[place] = vectors.ctypes.data + np.uintp(
            4 * ((row * checkpoints + t) * width + start)
        )


@compiled()
def search_products(
    pool: Pool,
    first: int,
    last: int,
    loss_grads: np.ndarray,
    activations: np.ndarray,
    test: Factors,
    rows: np.ndarray,
    train: Factors,
    blocks: Blocks,
    train_activations: np.ndarray,
    start: int,
    stop: int,
    margin: float,
    width: float,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Multiplies all pairs of the pool's rows `first` to `last` with blocks `start` to `stop` and
    searches them; `rows` are test rows.

    loss_grads [n, T, C] float32 are `√η_t ‖ĥ_t‖ δ_t` over N, activations [n, T, D] float32 of
    length 1, of the pool's rows. train_activations [B, T, D, BLOCK] are the training examples', of
    length 1. A product in these units, N and the block's, is off by at most `margin`; `width` is
    twice the error of any of the search, in units of N.
    """
    room = pool.bounds.shape[2] - BLOCK
    one, other = addresses_of(test), addresses_of(train)
    held = allocate_work(one.checkpoints)
    work = borrowed(held)
    pool, blocks, rates, ranks = borrowed(pool), borrowed(blocks), borrowed(rates), borrowed(ranks)
    sums = np.empty((_TILES * TILE, BLOCK), np.float32)
    for block in range(start, stop):
        columns, unit = columns_of_block(blocks, block), blocks.units[block]
        for group in range(first, last, _TILES * TILE):
            count = min(_TILES * TILE, last - group)
            multiply_rows(
                loss_grads,
                activations,
                group,
                group + count,
                blocks.loss_grads,
                train_activations,
                block,
                sums,
            )
            for place in range(count):
                i = group + place
                norm, divisor = test.norm[rows[i]], test.divisors[rows[i]]
                limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
                levels = float32_levels(limits, unit * norm, margin)
                address = sums.ctypes.data + np.uintp(4 * BLOCK * place)
                for sign in range(2):
                    mask = (
                        at_least(address, levels[0]) if sign == 0 else at_most(address, -levels[1])
                    ) & columns
                    if not mask:
                        continue
                    listed = pool.counts[sign, i]
                    while mask:
                        column = lowest_bit(mask)
                        mask &= mask - np.uint64(1)
                        value = np.float64(sums[place, column])
                        pool.bounds[sign, i, listed] = (
                            (value if sign == 0 else -value) + margin
                        ) * (unit * norm)
                        pool.listed[sign, i, listed] = blocks.columns[block * BLOCK + column]
                        listed += 1
                    pool.counts[sign, i] = listed
                    if listed > room:
                        _sharpen(pool, sign, i, width * norm, divisor)
                        if pool.counts[sign, i] > room // 2:
                            _settle(pool, sign, i, one, other, rows[i], work, rates, ranks)
    hold_work(held)


@inlined()
def _sharpen(pool: Pool, sign: int, i: int, width: float, divisor: float) -> None:
    """Raises the floor of row i to what its listed candidates prove, whose scores are at most
    `width` below their bounds.
    """
    bounds, listed = pool.bounds[sign, i], pool.listed[sign, i]
    k, n = pool.scores.shape[2], pool.counts[sign, i]
    if n >= k:
        proven = (nth_largest(bounds[:n].copy(), n - k) - width) / divisor
        pool.floors[sign, i] = max(pool.floors[sign, i], proven * (1 - 1e-12))
    limit = threshold_of(pool, sign, i, divisor)
    count = 0
    for place in range(n):
        if bounds[place] >= limit:
            bounds[count], listed[count] = bounds[place], listed[place]
            count += 1
    pool.counts[sign, i] = count


@inlined()
def _settle(
    pool: Pool,
    sign: int,
    i: int,
    test: Addresses,
    train: Addresses,
    row: int,
    work: Work,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Scores the listed candidates of the pool's row i (test row `row`) whose bounds reach the
    threshold.
    """
    divisor = load_float64(test.divisors, row)
    count = 0
    for place in range(pool.counts[sign, i]):
        if pool.bounds[sign, i, place] >= threshold_of(pool, sign, i, divisor):
            work.codes[count] = 2 * np.int64(pool.listed[sign, i, place]) + sign
            count += 1
            if count == CANDIDATES_AT_ONCE:
                score_candidates(pool, i, test, train, row, work, count, rates, ranks)
                count = 0
    score_candidates(pool, i, test, train, row, work, count, rates, ranks)
    pool.counts[sign, i] = 0


@compiled()
def settle_rows(
    pool: Pool,
    first: int,
    last: int,
    test: Factors,
    rows: np.ndarray,
    train: Factors,
    width: float,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Scores what is still listed for the pool's rows `first` to `last`; `width` as for
    `search_products`.
    """
    one, other = addresses_of(test), addresses_of(train)
    held = allocate_work(one.checkpoints)
    work = borrowed(held)
    pool, rates, ranks = borrowed(pool), borrowed(rates), borrowed(ranks)
    for i in range(first, last):
        row = rows[i]
        for sign in range(2):
            _sharpen(pool, sign, i, width * test.norm[row], test.divisors[row])
            _settle(pool, sign, i, one, other, row, work, rates, ranks)
    hold_work(held)
