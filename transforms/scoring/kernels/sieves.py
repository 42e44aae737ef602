"""The search by sieves: bounds by loss gradients, group by group, and canonical scores of the pairs
that pass.

The loops run without Python's lock, so threads share the work by groups of test examples. Nothing
here decides by approximate numbers: a bound may only let too many pairs through, and the best are
kept by canonical score and id.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.scoring.kernels.bounds import bound_group, bound_supergroup
from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.heaps import float32_levels, threshold_of
from transforms.scoring.kernels.layout import (
    CANDIDATES_AT_ONCE,
    NO_COLUMN,
    SUPERGROUP_SIZE,
    Bounding,
    Pool,
    Sides,
    columns_of_group,
)
from transforms.scoring.kernels.pairs import (
    Scorer,
    allocate_work,
    hold_work,
    score_candidates,
    scorer_of,
    vector_address,
)
from transforms.scoring.kernels.register_tiles import SKETCH, TILE_ROWS, multiply_sketches
from transforms.scoring.kernels.simd import (
    GROUP_SIZE,
    at_least,
    borrowed,
    count_bits,
    load_float64,
    lowest_bit,
)

# The error of a bound of an outline over that of a column's bound: the norm of the largest entries
# of all of a group's columns.
_OUTLINE_MARGIN = math.sqrt(GROUP_SIZE)

# Groups whose columns are counted to estimate how many pass.
_SAMPLE = 8


@compiled()
def search_pilots(pool: Pool, sides: Sides, columns: np.ndarray, chosen: np.ndarray) -> None:
    """Searches the pilots of the pool's rows that are `chosen` [n] bool; `columns` are of
    `ColumnGroups`.
    """
    held = allocate_work(len(sides.rates))
    scorer = scorer_of(sides, held)
    pool, work = borrowed(pool), scorer.work
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        row = sides.rows[i]
        count = 0
        for sign in range(2):
            for p in range(pool.pilots.shape[2]):
                pilot = pool.pilots[sign, i, p]
                if pilot == NO_COLUMN:
                    break
                if p > 0 and pilot == pool.pilots[sign, i, p - 1]:
                    continue
                if count == CANDIDATES_AT_ONCE:
                    score_candidates(pool, i, row, scorer, count)
                    count = 0
                pool.tally[i, 1] += 1
                work.codes[count] = 2 * np.int64(columns[pilot]) + sign
                count += 1
        score_candidates(pool, i, row, scorer, count)
    hold_work(held)


@inlined()
def _passing_groups(
    pool: Pool,
    i: int,
    test: tuple[int, float, float],
    bounding: Bounding,
    supergroup: int,
    bounds: np.ndarray,
) -> np.uint64:
    """Returns which groups of a supergroup may have columns that reach a limit with the pool's row
    i: a bit mask.

    `test` has the test row, its N and its divisor; `bounds` [2, SUPERGROUP_SIZE] float32 is a
    buffer.
    """
    groups, margin = bounding.groups, bounding.margin
    row, norm, divisor = test
    limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
    above = bounds.ctypes.data
    bound_supergroup(
        groups, supergroup, bounding.terms, row, above, above + np.uintp(4 * SUPERGROUP_SIZE)
    )
    mask = np.uint64(0)
    for g in range(min(SUPERGROUP_SIZE, len(groups.scales) - supergroup * SUPERGROUP_SIZE)):
        scale = groups.scales[supergroup * SUPERGROUP_SIZE + g] * norm
        # In float64, in which no limit overflows that means anything.
        passes = (bounds[0, g] + _OUTLINE_MARGIN * margin) * scale >= limits[0]
        passes |= (bounds[1, g] + _OUTLINE_MARGIN * margin) * scale >= limits[1]
        mask |= np.uint64(passes) << np.uint64(g)
    return mask


@compiled()
def count_passing(
    pool: Pool,
    sides: Sides,
    bounding: Bounding,
    chosen: np.ndarray,
    first: int,
    last: int,
    bounded: np.ndarray,
    passing: np.ndarray,
) -> None:
    """Counts, for the pool's rows that are `chosen` [n] bool and supergroups `first` to `last`, the
    columns of groups that pass, and estimates how many of these columns pass: adds to `bounded` and
    `passing`, [n] int64.
    """
    bounds = np.empty((2, SUPERGROUP_SIZE), np.float32)
    passing_groups = np.empty((last - first) * SUPERGROUP_SIZE, np.int64)
    pool, bounding, test = borrowed(pool), borrowed(bounding), borrowed(sides.test)
    groups = bounding.groups
    above, below = bounds.ctypes.data, bounds.ctypes.data + np.uintp(4 * GROUP_SIZE)
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        row = sides.rows[i]
        norm, divisor = test.norm[row], test.divisors[row]
        count = 0
        for supergroup in range(first, last):
            mask = _passing_groups(pool, i, (row, norm, divisor), bounding, supergroup, bounds)
            while mask:
                group = supergroup * SUPERGROUP_SIZE + lowest_bit(mask)
                passing_groups[count] = group
                bounded[i] += count_bits(columns_of_group(groups, group))
                count += 1
                mask &= mask - np.uint64(1)
        limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
        columns = 0
        for sample in range(min(_SAMPLE, count)):
            group = passing_groups[sample * count // min(_SAMPLE, count)]
            bound_group(groups, group, bounding.terms, row, 0, above, below)
            levels = float32_levels(limits, groups.scales[group] * norm, bounding.margin)
            for sign in range(2):
                columns += count_bits(
                    at_least(above + np.uintp(4 * GROUP_SIZE * sign), levels[sign])
                    & columns_of_group(groups, group)
                )
        passing[i] += columns * count // max(1, min(_SAMPLE, count))


@compiled()
def search_groups(
    pool: Pool, sides: Sides, bounding: Bounding, chosen: np.ndarray, first: int, last: int
) -> None:
    """Searches supergroups `first` to `last` for the best of the pool's rows that are `chosen`, [n]
    bool.
    """
    held = allocate_work(len(sides.rates))
    scorer = scorer_of(sides, held)
    rows, test, checkpoints = sides.rows, borrowed(sides.test), scorer.test.checkpoints
    bounds = np.empty((2, GROUP_SIZE), np.float32)
    masks = np.zeros(len(chosen), np.uint64)
    reached = np.zeros((2, len(chosen)), np.int64)
    waiting = np.empty(TILE_ROWS, np.int64)
    sketches = np.empty(TILE_ROWS, np.uintp)
    cosines = np.empty((TILE_ROWS, checkpoints, GROUP_SIZE), np.float32)
    pool, bounding = borrowed(pool), borrowed(bounding)
    groups = bounding.groups
    for supergroup in range(first, last):
        for i in range(len(chosen)):
            if chosen[i]:
                row = (rows[i], test.norm[rows[i]], test.divisors[rows[i]])
                masks[i] = _passing_groups(pool, i, row, bounding, supergroup, bounds)
        for g in range(min(SUPERGROUP_SIZE, len(groups.scales) - supergroup * SUPERGROUP_SIZE)):
            group = supergroup * SUPERGROUP_SIZE + g
            count = 0
            for i in range(len(chosen) + 1):
                if i < len(chosen) and chosen[i]:
                    if masks[i] >> np.uint64(g) & np.uint64(1):
                        passing = _passing_columns(
                            pool, i, rows[i], scorer, bounding, group, np.uintp(0), bounds
                        )
                        if scorer.test.sketched:
                            waiting[count] = i
                            count += (passing[0] | passing[1]) != 0
                        elif passing[0] | passing[1]:
                            _search_columns(
                                pool, i, rows[i], scorer, bounding, group, passing, reached
                            )
                    else:
                        pool.tally[i, 0] += count_bits(columns_of_group(groups, group))
                if count < TILE_ROWS and (i < len(chosen) or count == 0):
                    continue
                # Rows that wait share the group's sketches.
                for own in range(TILE_ROWS):
                    sketches[own] = vector_address(
                        scorer.test.sketches,
                        rows[waiting[min(own, count - 1)]] * checkpoints,
                        SKETCH,
                    )
                theirs = vector_address(
                    groups.sketches.ctypes.data, group * checkpoints * SKETCH, GROUP_SIZE
                )
                multiply_sketches(checkpoints, sketches.ctypes.data, theirs, cosines.ctypes.data)
                for own in range(count):
                    waited = waiting[own]
                    known = cosines.ctypes.data + np.uintp(4 * GROUP_SIZE * checkpoints * own)
                    passing = _passing_columns(
                        pool, waited, rows[waited], scorer, bounding, group, known, bounds
                    )
                    if passing[0] | passing[1]:
                        _search_columns(
                            pool, waited, rows[waited], scorer, bounding, group, passing, reached
                        )
                count = 0
    hold_work(held)


@inlined(forceinline=True)
def _passing_columns(
    pool: Pool,
    i: int,
    row: int,
    scorer: Scorer,
    bounding: Bounding,
    group: int,
    cosines: int,
    bounds: np.ndarray,
) -> tuple[np.uint64, np.uint64]:
    """Returns which columns of a group may be proponents of the pool's row i (test row `row`), and
    which opponents: two bit masks.

    `cosines` as for `bound_group`; `bounds` [2, GROUP_SIZE] float32 is a buffer.
    """
    groups, test = bounding.groups, scorer.test
    divisor = load_float64(test.divisors, row)
    limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
    levels = float32_levels(
        limits, groups.scales[group] * load_float64(test.norm, row), bounding.margin
    )
    above, below = bounds.ctypes.data, bounds.ctypes.data + np.uintp(4 * GROUP_SIZE)
    bound_group(groups, group, bounding.terms, row, cosines, above, below)
    columns = columns_of_group(groups, group)
    return at_least(above, levels[0]) & columns, at_least(below, levels[1]) & columns


@inlined(forceinline=True)
def _search_columns(
    pool: Pool,
    i: int,
    row: int,
    scorer: Scorer,
    bounding: Bounding,
    group: int,
    passing: tuple[np.uint64, np.uint64],
    reached: np.ndarray,
) -> None:
    """Scores the `passing` columns of a group, proponents and opponents, for the pool's row i, but
    for its pilots; `reached` is of `_pilots`.
    """
    groups, work = bounding.groups, scorer.work
    count = 0
    for sign in range(2):
        mask = (passing[0] if sign == 0 else passing[1]) & ~_pilots(pool, sign, i, group, reached)
        while mask:
            j = np.int64(groups.columns[group * GROUP_SIZE + lowest_bit(mask)])
            mask &= mask - np.uint64(1)
            work.codes[count] = 2 * j + sign
            count += 1
    pool.tally[i, 1] += count
    score_candidates(pool, i, row, scorer, count)


@inlined(forceinline=True)
def _pilots(pool: Pool, sign: int, i: int, group: int, reached: np.ndarray) -> np.uint64:
    """Returns which columns of a group are among the pilots of the pool's row i: a bit mask.

    Groups come in their order: `reached` [2, n] is the number of pilots before the last group that
    this was called for.
    """
    mask, first = np.uint64(0), group * GROUP_SIZE
    while reached[sign, i] < pool.pilots.shape[2]:
        column = np.int64(pool.pilots[sign, i, reached[sign, i]])
        if column >= first + GROUP_SIZE:
            break
        if column >= first:
            mask |= np.uint64(1) << np.uint64(column - first)
        reached[sign, i] += 1
    return mask


def forget_unchosen(pool: Pool, chosen: np.ndarray) -> None:
    """Empties the heaps of rows that are not `chosen` [n] bool, but keeps the thresholds that they
    prove.
    """
    full = pool.filled == pool.scores.shape[2]
    proven = np.where(full, np.maximum(pool.floors, pool.scores[:, :, 0]), pool.floors)
    pool.floors[:, ~chosen] = proven[:, ~chosen]
    pool.filled[:, ~chosen] = 0
    pool.pilots[:, ~chosen] = NO_COLUMN
