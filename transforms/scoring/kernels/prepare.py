"""Compiled loops that prepare a search: blocks, outlines, sketches, large entries of loss
gradients, and pilots.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.layout import (
    NO_PLACE,
    PAGE,
    STRONGEST,
    Blocks,
    Factors,
    Pool,
    Terms,
    count_parts,
    part_of_sum,
)
from transforms.scoring.kernels.simd import BLOCK, SKETCH, SKETCH_COLUMNS, TILE, add_sketches


@compiled()
def strongest_outputs_of(
    loss_grads: np.ndarray, lengths: np.ndarray, first: int, last: int, outputs: np.ndarray
) -> None:
    """Of rows `first` to `last` of loss_grads [n, T, C] with lengths [n, T], the two outputs in
    which `Σ_t √η_t ‖ĥ_t‖ δ_t` is largest.

    outputs [n, 2] int32, the largest first, each as `2 c` or, below zero, `2 c + 1`.
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
def cut_blocks(
    blocks: np.ndarray,
    first: int,
    last: int,
    vectors: np.ndarray,
    factors: np.ndarray,
    units: np.ndarray,
    columns: np.ndarray,
) -> None:
    """Fills blocks `first` to `last` of [B, T, R, BLOCK] with the vectors [n, T, R] of the rows
    `columns`, scaled.

    Vectors are multiplied by `factors` [n, T] and divided by the `units` [B] of their blocks; zeros
    fill up the last block.
    """
    _, checkpoints, width, _ = blocks.shape
    for block in range(first, last):
        count = max(0, min(BLOCK, len(columns) - block * BLOCK))
        for t in range(checkpoints):
            if count < BLOCK:
                blocks[block, t] = 0
            for place in range(count):
                j = columns[block * BLOCK + place]
                factor = factors[j, t] / units[block]
                for r in range(width):
                    blocks[block, t, r, place] = np.float32(factor * vectors[j, t, r])


@compiled()
def outline_blocks(
    blocks: Blocks, first: int, last: int, train: Factors, scales: np.ndarray
) -> None:
    """Fills in what is known of whole blocks, `first` to `last`, once they are cut; `scales` [n] is
    1, or 1 / N where normalised.
    """
    _, checkpoints, outputs, _ = blocks.loss_grads.shape
    for block in range(first, last):
        columns = blocks.columns[block * BLOCK : (block + 1) * BLOCK]
        page, place = block // PAGE, block % PAGE
        for t in range(checkpoints):
            blocks.norms[block, t] = 0
            blocks.rests[block, t] = 0
            norm, negative = np.float32(0), np.float32(0)
            for column in range(len(columns)):
                j = columns[column]
                blocks.norms[block, t, column] = np.float32(
                    train.norms[j, t] * (scales[j] / blocks.units[block]) * (1 + 1e-6)
                )
                blocks.rests[block, t, column] = np.float32(train.rests[j, t] * (1 + 1e-6))
                norm = max(norm, blocks.norms[block, t, column])
                negative = max(negative, np.float32(train.negatives[j, t] * (1 + 1e-6)))
            blocks.negatives[block, t] = negative
            blocks.page_norms[page, t, place], blocks.page_negatives[page, t, place] = (
                norm,
                negative,
            )
            for c in range(outputs):
                highest, lowest = (
                    blocks.loss_grads[block, t, c, 0],
                    blocks.loss_grads[block, t, c, 0],
                )
                for column in range(1, len(columns)):
                    highest = max(highest, blocks.loss_grads[block, t, c, column])
                    lowest = min(lowest, blocks.loss_grads[block, t, c, column])
                blocks.highest[page, t, c, place], blocks.lowest[page, t, c, place] = (
                    highest,
                    lowest,
                )


@compiled()
def scale_vectors(
    scaled: np.ndarray,
    first: int,
    last: int,
    vectors: np.ndarray,
    factors: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Fills places `first` to `last` of scaled [m, T, R] with vectors [n, T, R] of these rows [m],
    multiplied by `factors` [n, T].
    """
    _, checkpoints, width = vectors.shape
    for place in range(first, last):
        for t in range(checkpoints):
            factor = factors[rows[place], t]
            for r in range(width):
                scaled[place, t, r] = np.float32(factor * vectors[rows[place], t, r])


@compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
def look_at_activations(
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
    """For rows `first` to `last` of activations [n, T, D] with these lengths [n, T], fills in the
    fields of `Factors`.

    `directions` [T, D, SKETCH_COLUMNS] float32 are orthonormal but for rounding, zeros behind them;
    or there are none, [T, D, 0]. `error` is of `scoring.sketch_error`. Additions may come in any
    order, since all is rounded up.
    """
    _, checkpoints, units = activations.shape
    scaled = np.zeros((TILE, units), np.float32)
    sums = np.empty((TILE, SKETCH_COLUMNS), np.float32)
    addresses = np.empty(TILE, np.uintp)
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        for t in range(checkpoints):
            for place in range(count):
                i = start + place
                vector = activations[i, t]
                inverse = 1 / lengths[i, t] if lengths[i, t] > 0 else 0.0
                total = 0.0
                for d in range(units):
                    # To length 1, lest products underflow.
                    value = inverse * np.float64(vector[d])
                    scaled[place, d] = np.float32(value)
                    value = min(value, 0.0)
                    total += value * value
                negatives[i, t] = min(1.0, np.sqrt(total) * (1 + 1e-6))
            if not directions.shape[2]:
                continue
            sums[:] = 0
            for part in range(count_parts(units)):
                begin, width = part_of_sum(units, part)
                for place in range(TILE):
                    addresses[place] = scaled.ctypes.data + np.uintp(4 * (place * units + begin))
                columns = directions.ctypes.data + np.uintp(
                    4 * SKETCH_COLUMNS * (t * units + begin)
                )
                add_sketches(addresses.ctypes.data, width, columns, sums.ctypes.data)
            for place in range(count):
                total = 0.0
                for r in range(SKETCH):
                    sketches[start + place, t, r] = sums[place, r]
                    total += np.float64(sums[place, r]) * np.float64(sums[place, r])
                rests[start + place, t] = np.sqrt(max(0.0, 1 - total) + error)


@compiled()
def find_terms(
    loss_grads: np.ndarray,
    lengths: np.ndarray,
    norm: np.ndarray,
    tolerance: float,
    first: int,
    last: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Terms` of rows `first` to `last` of loss_grads [n, T, C], lengths [n, T] and
    norm [n].

    The entries left out have a norm of at most `tolerance` together, or are zero.
    """
    _, checkpoints, outputs = loss_grads.shape
    n = last - first
    starts = np.empty((n, checkpoints + 1), np.int64)
    rest = np.empty((n, checkpoints), np.float32)
    found = np.empty(max(16, 16 * n), np.int32)
    values = np.empty(len(found), np.float32)
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
                    if size == len(found):
                        before, values_before = found, values
                        found, values = np.empty(2 * size, np.int32), np.empty(2 * size, np.float32)
                        for e in range(size):
                            found[e], values[e] = before[e], values_before[e]
                    found[size], values[size] = c, np.float32(value)
                    size += 1
            rest[i, t] = np.float32(np.sqrt(small) * (1 + 1e-6))
        starts[i, checkpoints] = size
    return starts, found[:size].copy(), values[:size].copy(), rest


@compiled()
def strongest_outputs(terms: Terms, outputs: int, first: int, last: int, found: np.ndarray) -> None:
    """Of test rows `first` to `last`, the outputs in which the sum of its terms is largest, the
    largest last.

    found [n, STRONGEST] int64, each as `2 c` or, below zero, `2 c + 1`; −1 where there are fewer.
    """
    sums = np.empty(outputs, np.float64)
    sums[:] = 0
    for i in range(first, last):
        start, stop = terms.starts[i, 0], terms.starts[i, -1]
        for e in range(start, stop):
            sums[terms.outputs[e]] += terms.values[e]
        for place in range(STRONGEST - 1, -1, -1):
            best = -1
            for e in range(start, stop):
                c = terms.outputs[e]
                if sums[c] != 0 and (best < 0 or abs(sums[c]) > abs(sums[best])):
                    best = c
            found[i, place] = -1
            if best >= 0:
                found[i, place] = 2 * best + (sums[best] < 0)
                sums[best] = 0
        for e in range(start, stop):
            sums[terms.outputs[e]] = 0


@inlined(forceinline=True)
def _magnitude(value: float) -> int:
    """The power of two of a number of at most 1, as 0 (smallest, and zero) to 255."""
    if value == 0:
        return 0
    _, exponent = math.frexp(value)
    return min(255, max(1, exponent + 250))


@compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
def strongest_places(blocks: Blocks, first: int, last: int, places: np.ndarray) -> None:
    """For outputs `first` to `last`, where the largest `Σ_t √η_t ‖ĥ_t‖ δ_tc` are, above and below
    zero: places in `columns` [2, C, P].

    Where there are fewer, the rest is −1. Sums are in float32; what is a little weaker serves as
    well.
    """
    checkpoints, most = blocks.loss_grads.shape[1], places.shape[2]
    held = np.zeros((2, last - first, most), np.float64)
    least = np.zeros((2, last - first), np.int64)
    places[:, first:last] = -1
    sums = np.empty(BLOCK, np.float32)
    for block in range(len(blocks.units)):
        for c in range(first, last):
            sums[:] = 0
            for t in range(checkpoints):
                for column in range(BLOCK):
                    sums[column] += blocks.loss_grads[block, t, c, column]
            for column in range(min(BLOCK, len(blocks.columns) - block * BLOCK)):
                value = np.float64(sums[column]) * blocks.units[block]
                sign = 0 if value > 0 else 1
                place = least[sign, c - first]
                if abs(value) > held[sign, c - first, place]:
                    held[sign, c - first, place] = abs(value)
                    places[sign, c, place] = block * BLOCK + column
                    place = 0
                    for other in range(1, most):
                        if held[sign, c - first, other] < held[sign, c - first, place]:
                            place = other
                    least[sign, c - first] = place


def choose_by_outputs(
    pool: Pool, rows: np.ndarray, chosen: np.ndarray, outputs: np.ndarray, strongest: np.ndarray
) -> None:
    """Makes the pilots of the rows `chosen`: what is strongest in the outputs that a test row is
    strongest in.

    `outputs` is of `strongest_outputs`, `strongest` of `strongest_places`.
    """
    places = np.flatnonzero(chosen)
    codes = outputs[rows[places]]
    for sign in range(2):
        pilots = strongest[sign ^ (codes & 1), codes >> 1]
        pilots[(pilots < 0) | (codes < 0)[:, :, None]] = NO_PLACE
        width = pilots.shape[1] * pilots.shape[2]
        pool.pilots[sign, places, :width] = np.sort(pilots.reshape(len(places), width))


def choose_by_leaders(
    pool: Pool,
    rows: np.ndarray,
    chosen: np.ndarray,
    leaders: np.ndarray,
    outputs: np.ndarray,
    places: np.ndarray,
) -> np.ndarray:
    """Makes the pilots of the rows `chosen`: the best of the pool's rows `leaders`, ascending,
    before and after each.

    Of those alone that are strongest in the same output; returns which of the rows have such a
    leader, [n] bool. `outputs` is of `strongest_outputs`; `places` are of training rows, in
    `Blocks.columns`.
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
            np.arange(k) < pool.filled[:, leading, None], places[pool.rows[:, leading]], NO_PLACE
        )
        pool.pilots[:, following, side * k : (side + 1) * k] = best
        led[following] = True
    pool.pilots[:, led] = np.sort(pool.pilots[:, led])
    return led
