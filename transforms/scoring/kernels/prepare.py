"""Preparation of a search: column groups and their outlines, sketches, large entries of loss
gradients, and pilots.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.layout import (
    NO_COLUMN,
    STRONGEST,
    SUPERGROUP_SIZE,
    ColumnGroups,
    Factors,
    Pool,
    Terms,
    count_parts,
    part_of_sum,
)
from transforms.scoring.kernels.register_tiles import (
    SKETCH,
    SKETCH_COLUMNS,
    TILE_ROWS,
    add_sketches,
)
from transforms.scoring.kernels.simd import GROUP_SIZE


@compiled()
def strongest_outputs_of(
    loss_grads: np.ndarray, lengths: np.ndarray, first: int, last: int, outputs: np.ndarray
) -> None:
    """Finds the two outputs in which `Σ_t √η_t ‖ĥ_t‖ δ_t` is largest, of rows `first` to `last` of
    loss_grads [n, T, C] with lengths [n, T].

    Fills outputs [n, 2] int32, the largest first, each as `2 c` or, below zero, `2 c + 1`.
    """
    _, checkpoints, width = loss_grads.shape
    sums = np.empty(width)
    for j in range(first, last):
        sums[:] = 0
        for t in range(checkpoints):
            for c in range(width):
                sums[c] += lengths[j, t] * loss_grads[j, t, c]
        best, second = 0, 0
        for c in range(1, width):
            if abs(sums[c]) > abs(sums[best]):
                best, second = c, best
            elif best == second or abs(sums[c]) > abs(sums[second]):
                second = c
        outputs[j, 0], outputs[j, 1] = 2 * best + (sums[best] < 0), 2 * second + (sums[second] < 0)


@compiled()
def fill_groups(
    filled: np.ndarray,
    first: int,
    last: int,
    vectors: np.ndarray,
    factors: np.ndarray,
    scales: np.ndarray,
    columns: np.ndarray,
) -> None:
    """Fills groups `first` to `last` of [G, T, R, GROUP_SIZE] with scaled vectors [n, T, R] of the
    rows `columns`.

    Vectors are multiplied by `factors` [n, T] and divided by the `scales` [G] of their groups;
    zeros fill up the last group.
    """
    _, checkpoints, width, _ = filled.shape
    for group in range(first, last):
        count = max(0, min(GROUP_SIZE, len(columns) - group * GROUP_SIZE))
        for t in range(checkpoints):
            if count < GROUP_SIZE:
                filled[group, t] = 0
            for column in range(count):
                j = columns[group * GROUP_SIZE + column]
                factor = factors[j, t] / scales[group]
                for r in range(width):
                    filled[group, t, r, column] = np.float32(factor * vectors[j, t, r])


@compiled()
def outline_groups(
    groups: ColumnGroups, first: int, last: int, train: Factors, factors: np.ndarray
) -> None:
    """Fills in the norms, negatives, rests and outlines of groups `first` to `last`, whose loss
    gradients are filled in; `factors` [n] are 1, or 1 / N where normalised.
    """
    _, checkpoints, outputs, _ = groups.loss_grads.shape
    for group in range(first, last):
        rows = groups.columns[group * GROUP_SIZE : (group + 1) * GROUP_SIZE]
        supergroup, g = group // SUPERGROUP_SIZE, group % SUPERGROUP_SIZE
        for t in range(checkpoints):
            groups.norms[group, t] = 0
            groups.rests[group, t] = 0
            norm, negative = np.float32(0), np.float32(0)
            for column in range(len(rows)):
                j = rows[column]
                groups.norms[group, t, column] = np.float32(
                    train.norms[j, t] * (factors[j] / groups.scales[group]) * (1 + 1e-6)
                )
                groups.rests[group, t, column] = np.float32(train.rests[j, t] * (1 + 1e-6))
                norm = max(norm, groups.norms[group, t, column])
                negative = max(negative, np.float32(train.negatives[j, t] * (1 + 1e-6)))
            groups.negatives[group, t] = negative
            groups.largest_norms[supergroup, t, g] = norm
            groups.largest_negatives[supergroup, t, g] = negative
            for c in range(outputs):
                highest = lowest = groups.loss_grads[group, t, c, 0]
                for column in range(1, len(rows)):
                    highest = max(highest, groups.loss_grads[group, t, c, column])
                    lowest = min(lowest, groups.loss_grads[group, t, c, column])
                groups.highest[supergroup, t, c, g] = highest
                groups.lowest[supergroup, t, c, g] = lowest


@compiled()
def scale_vectors(
    scaled: np.ndarray,
    first: int,
    last: int,
    vectors: np.ndarray,
    factors: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Fills slots `first` to `last` of scaled [m, T, R] with vectors [n, T, R] of these rows [m],
    multiplied by `factors` [n, T].
    """
    _, checkpoints, width = vectors.shape
    for slot in range(first, last):
        for t in range(checkpoints):
            factor = factors[rows[slot], t]
            for r in range(width):
                scaled[slot, t, r] = np.float32(factor * vectors[rows[slot], t, r])


@compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
def sketch_activations(
    activations: np.ndarray,
    lengths: np.ndarray,
    directions: np.ndarray,
    error: float,
    first: int,
    last: int,
    negatives: np.ndarray,
    sketches: np.ndarray,
    rests: np.ndarray,
) -> None:
    """Fills in negatives, sketches and rests of `Factors` for rows `first` to `last` of activations
    [n, T, D] with these lengths [n, T].

    `directions` [T, D, SKETCH_COLUMNS] float32 are orthonormal but for rounding, zeros behind them;
    or there are none, [T, D, 0]. `error` is `error_bounds.sketch_error`. Additions may come in any
    order, since all is rounded up.
    """
    _, checkpoints, units = activations.shape
    scaled = np.zeros((TILE_ROWS, units), np.float32)
    sums = np.empty((TILE_ROWS, SKETCH_COLUMNS), np.float32)
    addresses = np.empty(TILE_ROWS, np.uintp)
    for start in range(first, last, TILE_ROWS):
        count = min(TILE_ROWS, last - start)
        for t in range(checkpoints):
            for slot in range(count):
                i = start + slot
                vector = activations[i, t]
                inverse = 1 / lengths[i, t] if lengths[i, t] > 0 else 0.0
                total = 0.0
                for d in range(units):
                    # To length 1, lest products underflow.
                    value = inverse * np.float64(vector[d])
                    scaled[slot, d] = np.float32(value)
                    value = min(value, 0.0)
                    total += value * value
                negatives[i, t] = min(1.0, np.sqrt(total) * (1 + 1e-6))
            if not directions.shape[2]:
                continue
            sums[:] = 0
            for part in range(count_parts(units)):
                begin, width = part_of_sum(units, part)
                for slot in range(TILE_ROWS):
                    addresses[slot] = scaled.ctypes.data + np.uintp(4 * (slot * units + begin))
                columns = directions.ctypes.data + np.uintp(
                    4 * SKETCH_COLUMNS * (t * units + begin)
                )
                add_sketches(addresses.ctypes.data, width, columns, sums.ctypes.data)
            for slot in range(count):
                total = 0.0
                for r in range(SKETCH):
                    sketches[start + slot, t, r] = sums[slot, r]
                    total += np.float64(sums[slot, r]) * np.float64(sums[slot, r])
                rests[start + slot, t] = np.sqrt(max(0.0, 1 - total) + error)


@compiled()
def find_terms(
    loss_grads: np.ndarray,
    lengths: np.ndarray,
    norm: np.ndarray,
    tolerance: float,
    first: int,
    last: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns starts, outputs, values and rest of `Terms` for rows `first` to `last` of loss_grads
    [n, T, C], lengths [n, T] and norm [n].

    The entries left out have a norm of at most `tolerance` together, or are zero.
    """
    _, checkpoints, outputs = loss_grads.shape
    n = last - first
    starts = np.empty((n, checkpoints + 1), np.int64)
    rest = np.empty((n, checkpoints), np.float32)
    entries = np.empty(max(16, 16 * n), np.int32)
    values = np.empty(len(entries), np.float32)
    # Squares are counted by their power of two, which is finer than needed and takes one pass.
    sums = np.empty(256)
    size = 0
    for i in range(n):
        sums[:] = 0
        for t in range(checkpoints):
            factor = lengths[first + i, t] / norm[first + i]
            for c in range(outputs):
                value = factor * loss_grads[first + i, t, c]
                sums[_magnitude(value)] += value * value
        least, left_out = 0, 0.0
        while least < 255 and (left_out + sums[least]) * (1 + 1e-9) <= tolerance * tolerance:
            left_out += sums[least]
            least += 1
        for t in range(checkpoints):
            starts[i, t] = size
            factor = lengths[first + i, t] / norm[first + i]
            small = 0.0
            for c in range(outputs):
                value = factor * loss_grads[first + i, t, c]
                if _magnitude(value) < least:
                    small += value * value
                else:
                    if size == len(entries):
                        before, values_before = entries, values
                        entries = np.empty(2 * size, np.int32)
                        values = np.empty(2 * size, np.float32)
                        for e in range(size):
                            entries[e], values[e] = before[e], values_before[e]
                    entries[size], values[size] = c, np.float32(value)
                    size += 1
            rest[i, t] = np.float32(np.sqrt(small) * (1 + 1e-6))
        starts[i, checkpoints] = size
    return starts, entries[:size].copy(), values[:size].copy(), rest


@compiled()
def strongest_outputs(
    terms: Terms, outputs: int, first: int, last: int, strongest: np.ndarray
) -> None:
    """Finds the outputs in which the sum of a row's terms is largest, of test rows `first` to
    `last`, the largest last.

    Fills strongest [n, STRONGEST] int64, each as `2 c` or, below zero, `2 c + 1`; −1 where there
    are fewer.
    """
    sums = np.empty(outputs, np.float64)
    sums[:] = 0
    for i in range(first, last):
        start, stop = terms.starts[i, 0], terms.starts[i, -1]
        for e in range(start, stop):
            sums[terms.outputs[e]] += terms.values[e]
        for slot in range(STRONGEST - 1, -1, -1):
            best = -1
            for e in range(start, stop):
                c = terms.outputs[e]
                if sums[c] != 0 and (best < 0 or abs(sums[c]) > abs(sums[best])):
                    best = c
            strongest[i, slot] = -1
            if best >= 0:
                strongest[i, slot] = 2 * best + (sums[best] < 0)
                sums[best] = 0
        for e in range(start, stop):
            sums[terms.outputs[e]] = 0


@inlined(forceinline=True)
def _magnitude(value: float) -> int:
    """Returns the power of two of a number of at most 1, as 0 (smallest, and zero) to 255."""
    if value == 0:
        return 0
    _, exponent = math.frexp(value)
    return min(255, max(1, exponent + 250))


@compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
def strongest_columns(groups: ColumnGroups, first: int, last: int, strongest: np.ndarray) -> None:
    """Finds the columns with the largest `Σ_t √η_t ‖ĥ_t‖ δ_tc`, above and below zero, for outputs
    `first` to `last`: fills strongest [2, C, P] int32 with indices in `columns`.

    Where there are fewer, the rest is −1. Sums are in float32; columns that are a little weaker
    serve as well.
    """
    checkpoints, most = groups.loss_grads.shape[1], strongest.shape[2]
    held = np.zeros((2, last - first, most), np.float64)
    least = np.zeros((2, last - first), np.int64)
    strongest[:, first:last] = -1
    sums = np.empty(GROUP_SIZE, np.float32)
    for group in range(len(groups.scales)):
        for c in range(first, last):
            sums[:] = 0
            for t in range(checkpoints):
                for column in range(GROUP_SIZE):
                    sums[column] += groups.loss_grads[group, t, c, column]
            for column in range(min(GROUP_SIZE, len(groups.columns) - group * GROUP_SIZE)):
                value = np.float64(sums[column]) * groups.scales[group]
                sign = 0 if value > 0 else 1
                slot = least[sign, c - first]
                if abs(value) > held[sign, c - first, slot]:
                    held[sign, c - first, slot] = abs(value)
                    strongest[sign, c, slot] = group * GROUP_SIZE + column
                    slot = 0
                    for other in range(1, most):
                        if held[sign, c - first, other] < held[sign, c - first, slot]:
                            slot = other
                    least[sign, c - first] = slot


def choose_by_outputs(
    pool: Pool, rows: np.ndarray, chosen: np.ndarray, outputs: np.ndarray, strongest: np.ndarray
) -> None:
    """Chooses the pilots of the pool's rows that are `chosen`: the strongest columns of the outputs
    in which the test row is strongest.

    `outputs` is of `strongest_outputs`, `strongest` of `strongest_columns`.
    """
    pool_rows = np.flatnonzero(chosen)
    codes = outputs[rows[pool_rows]]
    for sign in range(2):
        pilots = strongest[sign ^ (codes & 1), codes >> 1]
        pilots[(pilots < 0) | (codes < 0)[:, :, None]] = NO_COLUMN
        width = pilots.shape[1] * pilots.shape[2]
        pool.pilots[sign, pool_rows, :width] = np.sort(pilots.reshape(len(pool_rows), width))


def choose_by_leaders(
    pool: Pool,
    rows: np.ndarray,
    chosen: np.ndarray,
    leaders: np.ndarray,
    outputs: np.ndarray,
    column_of: np.ndarray,
) -> np.ndarray:
    """Chooses the pilots of the pool's rows that are `chosen`: the best of the nearest rows before
    and after each that are `leaders`, ascending.

    Only a leader that is strongest in the same output counts; returns which of the rows have one,
    [n] bool. `outputs` is of `strongest_outputs`; `column_of` [m] has the index of each training
    row in `ColumnGroups.columns`.
    """
    led = np.zeros(len(chosen), bool)
    k = pool.scores.shape[2]
    before = np.searchsorted(leaders, np.arange(len(chosen)))
    for side in range(2):
        near = before - 1 + side
        following = np.flatnonzero(chosen & (near >= 0) & (near < len(leaders)))
        leading = leaders[near[following]]
        same = outputs[rows[leading], STRONGEST - 1] == outputs[rows[following], STRONGEST - 1]
        following, leading = following[same], leading[same]
        best = np.where(
            np.arange(k) < pool.filled[:, leading, None],
            column_of[pool.rows[:, leading]],
            NO_COLUMN,
        )
        pool.pilots[:, following, side * k : (side + 1) * k] = best
        led[following] = True
    pool.pilots[:, led] = np.sort(pool.pilots[:, led])
    return led
