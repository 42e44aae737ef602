"""Compiled loops of the search: bounds by loss gradients, canonical scores, and heaps of the best.

They run without Python's lock, so threads share the work by groups of test examples. Compiled code
is cached beside this file, or in the user's cache directory where that is not writable. Nothing
here decides by approximate numbers: a bound only ever lets a pair through that need not have been,
and what is kept is kept by canonical score and id.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.heaps import float32_levels, threshold_of
from transforms.scoring.kernels.layout import (
    CANDIDATES_AT_ONCE,
    NO_PLACE,
    PAGE,
    Addresses,
    Blocks,
    Factors,
    Pool,
    Terms,
    addresses_of,
    columns_of_block,
)
from transforms.scoring.kernels.pairs import (
    Work,
    allocate_work,
    hold_work,
    score_candidates,
    vector_address,
)
from transforms.scoring.kernels.simd import (
    BLOCK,
    SKETCH,
    TILE,
    at_least,
    borrowed,
    bound_columns,
    bound_outlines,
    count_bits,
    load_float64,
    lowest_bit,
    multiply_sketches,
)

# The error of a bound of an outline over that of a column's bound: the norm of the largest entries
# of all of a block's columns.
_OUTLINE_MARGIN = math.sqrt(BLOCK)

# Blocks whose columns are counted to estimate how many pass.
_SAMPLE = 8


@compiled(forceinline=True)
def bound_block(
    blocks: Blocks, block: int, terms: Terms, i: int, cosines: int, above: int, below: int
) -> None:
    """Upper bounds of the scores of test row i with a block's columns, and of the negated scores,
    to two addresses: [BLOCK] float32.

    Of the score `Σ_t p_t q_t ‖ĥ_t‖ ‖ĥ'_t‖`, with `p = δ_t · δ'_t` and q the cosine of the
    activations, p is known but for the entries that are no terms, whose norms bound it. q is
    between −κ and 1, where κ is the sum of the shares of negative entries (0 after a ReLU); or, if
    `cosines` is not 0 but the address of the products of sketches [T, BLOCK], it is known but for
    what is outside of the sketches. The bound is that of the corners of the two intervals.
    """
    _, checkpoints, outputs, _ = blocks.loss_grads.shape
    start = np.uintp(4 * block * checkpoints)
    addresses = (
        blocks.loss_grads.ctypes.data + start * np.uintp(outputs * BLOCK),
        blocks.norms.ctypes.data + start * np.uintp(BLOCK),
        blocks.negatives.ctypes.data + start,
        blocks.rests.ctypes.data + start * np.uintp(BLOCK),
    )
    bound_columns(checkpoints, outputs, _row_terms(terms, i), addresses, cosines, above, below)


@compiled(forceinline=True)
def bound_page(blocks: Blocks, page: int, terms: Terms, i: int, above: int, below: int) -> None:
    """The bounds of `bound_block`, no smaller than those of any column of a block, of all blocks of
    a page: [PAGE] float32.

    p is bounded by the highest and the lowest that each entry has in a block, and by the norms.
    """
    _, checkpoints, outputs, _ = blocks.loss_grads.shape
    start = np.uintp(4 * PAGE * page * checkpoints)
    addresses = (
        blocks.highest.ctypes.data + start * np.uintp(outputs),
        blocks.lowest.ctypes.data + start * np.uintp(outputs),
        blocks.page_norms.ctypes.data + start,
        blocks.page_negatives.ctypes.data + start,
    )
    bound_outlines(checkpoints, outputs, _row_terms(terms, i), addresses, above, below)


@inlined(forceinline=True)
def _row_terms(terms: Terms, i: int) -> tuple[Any, ...]:
    """The addresses of what `Terms` holds of row i, field by field."""
    checkpoints = terms.rest.shape[1]
    row = np.uintp(4 * i * checkpoints)
    return (
        terms.starts.ctypes.data + np.uintp(8 * i * (checkpoints + 1)),
        terms.outputs.ctypes.data,
        terms.values.ctypes.data,
        terms.rest.ctypes.data + row,
        terms.norms.ctypes.data + row,
        terms.negatives.ctypes.data + row,
        terms.outside.ctypes.data + row,
    )


@compiled()
def search_pilots(
    pool: Pool,
    test: Factors,
    rows: np.ndarray,
    train: Factors,
    columns: np.ndarray,
    chosen: np.ndarray,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Searches the pilots of the rows `chosen` [n]; `columns` are of `Blocks`."""
    one, other = addresses_of(test), addresses_of(train)
    held = allocate_work(one.checkpoints)
    work = borrowed(held)
    pool, rates, ranks = borrowed(pool), borrowed(rates), borrowed(ranks)
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        count = 0
        for sign in range(2):
            for place in range(pool.pilots.shape[2]):
                pilot = pool.pilots[sign, i, place]
                if pilot == NO_PLACE:
                    break
                if place > 0 and pilot == pool.pilots[sign, i, place - 1]:
                    continue
                if count == CANDIDATES_AT_ONCE:
                    score_candidates(pool, i, one, other, rows[i], work, count, rates, ranks)
                    count = 0
                pool.tally[i, 1] += 1
                work.codes[count] = 2 * np.int64(columns[pilot]) + sign
                count += 1
        score_candidates(pool, i, one, other, rows[i], work, count, rates, ranks)
    hold_work(held)


@inlined()
def _passing_blocks(
    blocks: Blocks,
    page: int,
    terms: Terms,
    row: int,
    norm: float,
    limits: tuple[float, float],
    margin: float,
    bounds: np.ndarray,
) -> np.uint64:
    """Which blocks of a page may have columns that reach a limit with this test row: a bit mask.
    `bounds` [2, PAGE] float32 is room.
    """
    bound_page(
        blocks, page, terms, row, bounds.ctypes.data, bounds.ctypes.data + np.uintp(4 * PAGE)
    )
    mask = np.uint64(0)
    for place in range(min(PAGE, len(blocks.units) - page * PAGE)):
        unit = blocks.units[page * PAGE + place] * norm
        # In float64, in which no limit overflows that means anything.
        passes = (bounds[0, place] + _OUTLINE_MARGIN * margin) * unit >= limits[0]
        passes |= (bounds[1, place] + _OUTLINE_MARGIN * margin) * unit >= limits[1]
        mask |= np.uint64(passes) << np.uint64(place)
    return mask


@compiled()
def count_passing(
    pool: Pool,
    test: Factors,
    rows: np.ndarray,
    terms: Terms,
    blocks: Blocks,
    chosen: np.ndarray,
    first: int,
    last: int,
    margin: float,
    bounded: np.ndarray,
    passing: np.ndarray,
) -> None:
    """Of the rows `chosen` [n] and pages `first` to `last`, counts columns of blocks that pass, and
    estimates how many of them do: [n].
    """
    bounds = np.empty((2, PAGE), np.float32)
    some = np.empty((last - first) * PAGE, np.int64)
    pool, terms, blocks = borrowed(pool), borrowed(terms), borrowed(blocks)
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        row = rows[i]
        limits = (
            threshold_of(pool, 0, i, test.divisors[row]),
            threshold_of(pool, 1, i, test.divisors[row]),
        )
        count = 0
        for page in range(first, last):
            mask = _passing_blocks(blocks, page, terms, row, test.norm[row], limits, margin, bounds)
            while mask:
                some[count] = page * PAGE + lowest_bit(mask)
                bounded[i] += count_bits(columns_of_block(blocks, some[count]))
                count += 1
                mask &= mask - np.uint64(1)
        found = 0
        for sample in range(min(_SAMPLE, count)):
            block = some[sample * count // min(_SAMPLE, count)]
            bound_block(
                blocks,
                block,
                terms,
                row,
                0,
                bounds.ctypes.data,
                bounds.ctypes.data + np.uintp(4 * BLOCK),
            )
            levels = float32_levels(limits, blocks.units[block] * test.norm[row], margin)
            for sign in range(2):
                found += count_bits(
                    at_least(bounds.ctypes.data + np.uintp(4 * BLOCK * sign), levels[sign])
                    & columns_of_block(blocks, block)
                )
        passing[i] += found * count // max(1, min(_SAMPLE, count))


@compiled()
def search_blocks(
    pool: Pool,
    test: Factors,
    rows: np.ndarray,
    terms: Terms,
    train: Factors,
    blocks: Blocks,
    chosen: np.ndarray,
    rates: np.ndarray,
    ranks: np.ndarray,
    first: int,
    last: int,
    margin: float,
) -> None:
    """Searches pages `first` to `last` for the best of the pool's rows, whose test rows are `rows`
    [n]; of those `chosen` [n] only.

    `margin` is the float32 error of a bound over N and the block's unit.
    """
    one, other = addresses_of(test), addresses_of(train)
    held = allocate_work(one.checkpoints)
    work = borrowed(held)
    bounds = np.empty((2, BLOCK), np.float32)
    masks = np.zeros(len(chosen), np.uint64)
    reached = np.zeros((2, len(chosen)), np.int64)
    waiting = np.empty(TILE, np.int64)
    sketches = np.empty(TILE, np.uintp)
    cosines = np.empty((TILE, one.checkpoints, BLOCK), np.float32)
    pool, terms, blocks, rates, ranks = (
        borrowed(pool),
        borrowed(terms),
        borrowed(blocks),
        borrowed(rates),
        borrowed(ranks),
    )
    for page in range(first, last):
        for i in range(len(chosen)):
            if chosen[i]:
                row = rows[i]
                limits = (
                    threshold_of(pool, 0, i, test.divisors[row]),
                    threshold_of(pool, 1, i, test.divisors[row]),
                )
                masks[i] = _passing_blocks(
                    blocks, page, terms, row, test.norm[row], limits, margin, bounds
                )
        for place in range(min(PAGE, len(blocks.units) - page * PAGE)):
            block = page * PAGE + place
            columns = columns_of_block(blocks, block)
            count = 0
            for i in range(len(chosen) + 1):
                if i < len(chosen) and chosen[i]:
                    if masks[i] >> np.uint64(place) & np.uint64(1):
                        above, below = _passing_columns(
                            pool, i, one, rows[i], blocks, block, terms, np.uintp(0), margin, bounds
                        )
                        if one.sketched:
                            waiting[count] = i
                            count += (above | below) != 0
                        elif above | below:
                            _search_columns(
                                pool,
                                i,
                                one,
                                other,
                                rows[i],
                                blocks,
                                block,
                                above,
                                below,
                                reached,
                                work,
                                rates,
                                ranks,
                            )
                    else:
                        pool.tally[i, 0] += count_bits(columns)
                if count < TILE and (i < len(chosen) or count == 0):
                    continue
                # Rows that wait share the block's sketches.
                for own in range(TILE):
                    sketches[own] = vector_address(
                        one.sketches, rows[waiting[min(own, count - 1)]] * one.checkpoints, SKETCH
                    )
                theirs = vector_address(
                    blocks.sketches.ctypes.data, block * one.checkpoints * SKETCH, BLOCK
                )
                multiply_sketches(
                    one.checkpoints, sketches.ctypes.data, theirs, cosines.ctypes.data
                )
                for own in range(count):
                    at = waiting[own]
                    known = cosines.ctypes.data + np.uintp(4 * BLOCK * one.checkpoints * own)
                    above, below = _passing_columns(
                        pool, at, one, rows[at], blocks, block, terms, known, margin, bounds
                    )
                    if above | below:
                        _search_columns(
                            pool,
                            at,
                            one,
                            other,
                            rows[at],
                            blocks,
                            block,
                            above,
                            below,
                            reached,
                            work,
                            rates,
                            ranks,
                        )
                count = 0
    hold_work(held)


@inlined(forceinline=True)
def _passing_columns(
    pool: Pool,
    i: int,
    test: Addresses,
    row: int,
    blocks: Blocks,
    block: int,
    terms: Terms,
    cosines: int,
    margin: float,
    bounds: np.ndarray,
) -> tuple[np.uint64, np.uint64]:
    """Which columns of a block may be proponents of the pool's row i (test row `row`), and which
    opponents: two bit masks.

    `cosines` as for `bound_block`; `bounds` [2, BLOCK] float32 is room.
    """
    divisor = load_float64(test.divisors, row)
    limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
    levels = float32_levels(limits, blocks.units[block] * load_float64(test.norm, row), margin)
    bound_block(
        blocks,
        block,
        terms,
        row,
        cosines,
        bounds.ctypes.data,
        bounds.ctypes.data + np.uintp(4 * BLOCK),
    )
    columns = columns_of_block(blocks, block)
    return at_least(bounds.ctypes.data, levels[0]) & columns, at_least(
        bounds.ctypes.data + np.uintp(4 * BLOCK), levels[1]
    ) & columns


@inlined(forceinline=True)
def _search_columns(
    pool: Pool,
    i: int,
    test: Addresses,
    train: Addresses,
    row: int,
    blocks: Blocks,
    block: int,
    above: np.uint64,
    below: np.uint64,
    reached: np.ndarray,
    work: Work,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Scores the columns of a block that pass, above or below, for the pool's row i, but for its
    pilots; `reached` is of `_pilots`.
    """
    count = 0
    for sign in range(2):
        mask = (above if sign == 0 else below) & ~_pilots(pool, sign, i, block, reached)
        while mask:
            j = np.int64(blocks.columns[block * BLOCK + lowest_bit(mask)])
            mask &= mask - np.uint64(1)
            work.codes[count] = 2 * j + sign
            count += 1
    pool.tally[i, 1] += count
    score_candidates(pool, i, test, train, row, work, count, rates, ranks)


@inlined(forceinline=True)
def _pilots(pool: Pool, sign: int, i: int, block: int, reached: np.ndarray) -> np.uint64:
    """Which columns of a block are among the pilots of the pool's row i: a bit mask.

    Blocks are asked for in their order: `reached` [2, n] is how many pilots were before the block
    that was asked for last.
    """
    mask, first = np.uint64(0), block * BLOCK
    while reached[sign, i] < pool.pilots.shape[2]:
        place = np.int64(pool.pilots[sign, i, reached[sign, i]])
        if place >= first + BLOCK:
            break
        if place >= first:
            mask |= np.uint64(1) << np.uint64(place - first)
        reached[sign, i] += 1
    return mask


def give_up(pool: Pool, chosen: np.ndarray) -> None:
    """Forgets the best of rows that are not `chosen` [n], but not what they prove of thresholds."""
    full = pool.filled == pool.scores.shape[2]
    proven = np.where(full, np.maximum(pool.floors, pool.scores[:, :, 0]), pool.floors)
    pool.floors[:, ~chosen] = proven[:, ~chosen]
    pool.filled[:, ~chosen] = 0
    pool.pilots[:, ~chosen] = NO_PLACE
