"""Compiled loops of the search: bounds by loss gradients, canonical scores, and heaps of the best.

They run without Python's lock, so threads share the work by groups of test examples. Compiled code is cached beside this file, or in the
user's cache directory where that is not writable. Nothing here decides by approximate numbers: a bound only ever lets a pair through that
need not have been, and what is kept is kept by canonical score and id.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from transforms.scoring import PART
from transforms.vectors import (
    AHEAD,
    BLOCK,
    QUAD,
    SKETCH,
    SKETCH_COLUMNS,
    TILE,
    add_block,
    add_scaled_block,
    add_sketches,
    at_least,
    at_most,
    borrowed,
    bound_columns,
    bound_outlines,
    count_bits,
    dots,
    load_float64,
    lowest_bit,
    multiply_sketches,
    score_quad,
)

# Blocks of a page: their outlines are bounded at once, as a block's columns are.
PAGE = BLOCK

# The error of a bound of an outline over that of a column's bound: the norm of the largest entries of all of a block's columns.
_OUTLINE_MARGIN = math.sqrt(BLOCK)

# Blocks whose columns are counted to estimate how many pass.
_SAMPLE = 8

# Candidates that are scored together.
_ROOM = 512

# Units of activations for which it pays to leave a candidate between checkpoints: else its bounds cost as much as its score.
_MANY_UNITS = 512

# Tiles of test rows that share a block of training columns, which the processor's cache then holds.
_TILES = 8

NO_PLACE = np.iinfo(np.int32).max

# How many outputs of a test example are taken as those that it is strongest in.
STRONGEST = 4

# Error of float64 arithmetic on a score of the factors, over N N': of the canonical score (n / LANES additions of n terms, up to a
# million of them), and of the bounds that are computed in float64.
SLACK = 1e-11


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compiles a function that Python calls: without Python's lock, and kept where it can be."""
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # No directory to keep compiled code in.
            return numba.njit(**options)(function)

    return decorate


def _inner(**options: Any) -> Callable[[Callable], Callable]:
    """For what compiled functions alone call: to take its arguments from Python would be most of what there is to compile."""
    return numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)


@_inner(inline="always")
def _parts(n: int) -> int:
    """Into how many parts a float32 sum of n terms is cut, each of `PART` terms at most."""
    return -(-n // PART)


@_inner(forceinline=True)
def _part(n: int, part: int) -> tuple[int, int]:
    """Where a part of a sum of n terms starts, and how many terms it has."""
    width = -(-n // _parts(n))
    return part * width, max(0, min(width, n - part * width))


class Factors(NamedTuple):
    """What the scores of n examples are made of.

    Attributes:
        loss_grads, activations: [n, T, C] and [n, T, D] float32, as stored.
        lengths: √η_t ‖ĥ_t‖, [n, T] float64.
        negatives: the norm of ĥ_t's negative entries over ‖ĥ_t‖, rounded up, [n, T] float64. After a ReLU it is 0.
        sketches: [n, T, SKETCH] float32, ĥ_t over its length in as many orthonormal directions; or [n, T, 0], where nothing is sketched.
        rests: the length of what is outside of these directions, [n, T] float64, with room for all errors of sketches: a product of two
            of these lengths is no less than what the product of two vectors may be off from that of their sketches.
        norms: n_t = √η_t ‖δ_t‖ ‖ĥ_t‖, [n, T] float64.
        norm: N = √self-influence, [n] float64.
        divisors: what normalisation divides this side's scores by, [n] float64.
    """

    loss_grads: np.ndarray
    activations: np.ndarray
    lengths: np.ndarray
    negatives: np.ndarray
    sketches: np.ndarray
    rests: np.ndarray
    norms: np.ndarray
    norm: np.ndarray
    divisors: np.ndarray


class Blocks(NamedTuple):
    """Loss gradients of training examples, scaled, transposed and cut into blocks of `BLOCK` columns; `PAGE` blocks have an outline.

    Attributes:
        columns: [m] int32, training rows; column j of block b is `columns[b * BLOCK + j]`.
        loss_grads: [B, T, C, BLOCK] float32, `√η_t ‖ĥ_t‖ δ_t` over the block's unit.
        norms: [B, T, BLOCK] float32, n_t over the block's unit, rounded up.
        units: [B] float64, what a block is scaled by: the largest N of its columns, or, where normalised, each column by its own.
        negatives: [B, T] float32, the largest of `Factors.negatives` in a block, rounded up.
        sketches: [B, T, SKETCH, BLOCK] float32, of `Factors`; or an empty axis for `SKETCH`.
        rests: [B, T, BLOCK] float32, of `Factors`, rounded up.
        highest, lowest: [B / PAGE, T, C, PAGE] float32, of each entry of `loss_grads` in a block.
        page_norms, page_negatives: [B / PAGE, T, PAGE] float32, the largest of a block.
    """

    columns: np.ndarray
    loss_grads: np.ndarray
    norms: np.ndarray
    units: np.ndarray
    negatives: np.ndarray
    sketches: np.ndarray
    rests: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    page_norms: np.ndarray
    page_negatives: np.ndarray


class Terms(NamedTuple):
    """The large entries of n test examples' scaled loss gradients, and the norm of the rest.

    Attributes:
        starts: [n, T + 1] int64; entries of checkpoint t of row i are `starts[i, t]` to `starts[i, t + 1]`.
        outputs: [E] int32.
        values: [E] float32, `√η_t ‖ĥ_t‖ δ_t / N`.
        rest: [n, T] float32, norm of the entries left out, rounded up.
        norms: [n, T] float32, n_t over N, rounded up.
        negatives, outside: [n, T] float32, `Factors.negatives` and `Factors.rests`, rounded up.
    """

    starts: np.ndarray
    outputs: np.ndarray
    values: np.ndarray
    rest: np.ndarray
    norms: np.ndarray
    negatives: np.ndarray
    outside: np.ndarray


class Pool(NamedTuple):
    """The best so far of n test examples, and candidates that are not scored yet; the first axis is the sign: proponents, opponents.

    Attributes:
        scores: [2, n, k] float64, a heap with the worst on top; of opponents negated.
        rows: [2, n, k] int32, training rows of the chunk.
        filled: [2, n] int64.
        floors: [2, n] float64; no score below it can be among the k best.
        bounds: [2, n, L] float64, upper bounds of candidates' scores times the test example's divisor.
        listed: [2, n, L] int32, their training rows.
        counts: [2, n] int64.
        pilots: [2, n, P] int32, places in `Blocks.columns` of training rows that are searched before all others, ascending and perhaps
            repeated; `NO_PLACE` fills up.
        tally: [n, 3] int64, pairs skipped in whole blocks, examined, and scored.
    """

    scores: np.ndarray
    rows: np.ndarray
    filled: np.ndarray
    floors: np.ndarray
    bounds: np.ndarray
    listed: np.ndarray
    counts: np.ndarray
    pilots: np.ndarray
    tally: np.ndarray


class _Addresses(NamedTuple):
    """Where the arrays of `Factors` are, and how long their last axes. Arrays themselves would be counted as used in each call, which
    costs more than most calls do; and threads would wait for each other's counting.
    """

    loss_grads: int
    activations: int
    sketches: int
    lengths: int
    negatives: int
    rests: int
    norm: int
    divisors: int
    checkpoints: int
    outputs: int
    units: int
    sketched: bool


@compiled(forceinline=True)
def _addresses(side: Factors) -> _Addresses:
    _, checkpoints, outputs = side.loss_grads.shape
    return _Addresses(
        side.loss_grads.ctypes.data,
        side.activations.ctypes.data,
        side.sketches.ctypes.data,
        side.lengths.ctypes.data,
        side.negatives.ctypes.data,
        side.rests.ctypes.data,
        side.norm.ctypes.data,
        side.divisors.ctypes.data,
        checkpoints,
        outputs,
        side.activations.shape[2],
        side.sketches.shape[2] > 0,
    )


class _Work(NamedTuple):
    """Room for the candidates of one test row that are scored together.

    Attributes:
        codes: [_ROOM] int64, `2 j` for training row j, and one more where it is a candidate for the opponents.
        products: [T, _ROOM] float64, δ_t · δ'_t.
        uppers: [T, _ROOM] float64, upper bounds of the parts of their scores, of opponents negated.
        bounds: [_ROOM] float64, a heap of bounds of their scores as `Pool.bounds` holds them, the largest on top.
        places: [_ROOM] int32, which candidates they are of.
        quad: [QUAD] int64, the candidates that are scored at once.
        dots, totals, left: [QUAD] float64, of these: products of their vectors, what there is of their scores, and upper bounds.
    """

    codes: np.ndarray
    products: np.ndarray
    uppers: np.ndarray
    bounds: np.ndarray
    places: np.ndarray
    quad: np.ndarray
    dots: np.ndarray
    totals: np.ndarray
    left: np.ndarray


@_inner()
def _work(checkpoints: int) -> _Work:
    return _Work(
        np.empty(_ROOM, np.int64),
        np.empty((checkpoints, _ROOM)),
        np.empty((checkpoints, _ROOM)),
        np.empty(_ROOM),
        np.empty(_ROOM, np.int32),
        np.empty(QUAD, np.int64),
        np.empty(QUAD),
        np.empty(QUAD),
        np.empty(QUAD),
    )


@_inner()
def _hold(work: _Work) -> None:
    """Keeps what was borrowed until here; it would be freed after its last use."""
    work.quad[0] = 0


@_inner(forceinline=True)
def _vector(start: int, record: int, width: int) -> Any:
    """The address of a record's float32 vector in an array of vectors of this width."""
    return start + np.uintp(4 * record * width)


@_inner(forceinline=True)
def _of_quad(one: int, row: int, other: int, work: _Work, t: int, checkpoints: int, width: int) -> tuple[Any, ...]:
    """The addresses of a test row's vector of checkpoint t and of those of the candidates `work.quad`."""
    return (
        _vector(one, row * checkpoints + t, width),
        _vector(other, (work.codes[work.quad[0]] >> 1) * checkpoints + t, width),
        _vector(other, (work.codes[work.quad[1]] >> 1) * checkpoints + t, width),
        _vector(other, (work.codes[work.quad[2]] >> 1) * checkpoints + t, width),
        _vector(other, (work.codes[work.quad[3]] >> 1) * checkpoints + t, width),
    )


@_inner(forceinline=True)
def _dots(one: int, row: int, other: int, work: _Work, t: int, checkpoints: int, width: int, products: int) -> None:
    """The dot products of a test row's vector of checkpoint t with those of the candidates `work.quad`, to an address."""
    x, y0, y1, y2, y3 = _of_quad(one, row, other, work, t, checkpoints, width)
    dots(x, y0, y1, y2, y3, width, products)


@_inner()
def _multiply_loss_grads(test: _Addresses, train: _Addresses, row: int, work: _Work, n: int) -> None:
    """Fills in `products` of n candidates."""
    for first in range(0, n, QUAD):
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
        for t in range(test.checkpoints):
            target = work.products.ctypes.data + np.uintp(8 * (t * _ROOM + first))
            _dots(test.loss_grads, row, train.loss_grads, work, t, test.checkpoints, test.outputs, target)


@_inner()
def _bound_parts(test: _Addresses, train: _Addresses, row: int, work: _Work, n: int) -> None:
    """Fills in `uppers` and `bounds` of n candidates: from exact loss gradients, and from sketches of activations, if there are any.

    A bound is minus infinity where all signs say that the score is not positive, or, of an opponent, not negative.
    """
    norm = load_float64(test.norm, row)
    for first in range(0, n, QUAD):
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
            work.left[q] = 0
            work.totals[q] = 0
        for t in range(test.checkpoints):
            if test.sketched:
                _dots(test.sketches, row, train.sketches, work, t, test.checkpoints, SKETCH, work.dots.ctypes.data)
            i = row * test.checkpoints + t
            for q in range(QUAD):
                place = work.quad[q]
                j = (work.codes[place] >> 1) * test.checkpoints + t
                towards = -work.products[t, place] if work.codes[place] & 1 else work.products[t, place]
                # ĥ · ĥ' over both lengths.
                against = min(1.0, load_float64(test.negatives, i) + load_float64(train.negatives, j))
                highest, lowest = 1.0, -against
                if test.sketched:
                    outside = load_float64(test.rests, i) * load_float64(train.rests, j)
                    highest, lowest = min(highest, work.dots[q] + outside), max(lowest, work.dots[q] - outside)
                length = load_float64(test.lengths, i) * load_float64(train.lengths, j)
                work.uppers[t, place] = max(towards * highest, towards * lowest) * length
                work.left[q] += work.uppers[t, place]
                # How many parts may be above 0.
                work.totals[q] += towards > 0 or (towards < 0 and against > 0)
        for q in range(min(QUAD, n - first)):
            j = work.codes[first + q] >> 1
            listed = _listed_bound(work.left[q], norm * load_float64(train.norm, j), load_float64(train.divisors, j))
            work.bounds[first + q] = listed if work.totals[q] else -np.inf


@_inner(forceinline=True)
def _listed_bound(upper: float, norms: float, divisor: float) -> float:
    """A pair's bound as `Pool.bounds` holds it, `norms` being N N'."""
    return (upper + SLACK * norms) / divisor


@_inner(forceinline=True)
def _normalized(score: float, test_divisor: float, train_divisor: float) -> float:
    divisor = train_divisor * test_divisor
    return score / divisor if divisor > 0 else 0.0


@compiled()
def canonical_scores(test: Factors, train: Factors, rates: np.ndarray, tests: np.ndarray, trains: np.ndarray) -> np.ndarray:
    """`scoring.canonical_scores` of P pairs, the same bits, compiled: [P] float64."""
    scores = np.empty(len(tests))
    one, other = _addresses(test), _addresses(train)
    held = _work(one.checkpoints)
    work = borrowed(held)
    work.quad[:] = 0
    for p in range(len(tests)):
        work.codes[0] = 2 * trains[p]
        _score_quad(one, other, tests[p], work, rates.ctypes.data)
        scores[p] = _normalized(work.totals[0], test.divisors[tests[p]], train.divisors[trains[p]])
    _hold(held)
    return scores


@_inner(forceinline=True)
def _add_part(test: _Addresses, train: _Addresses, row: int, work: _Work, t: int, rate: float) -> None:
    """Adds checkpoint t to the `totals` of the candidates `quad`, and leaves it in `dots`."""
    _dots(test.activations, row, train.activations, work, t, test.checkpoints, test.units, work.dots.ctypes.data)
    for q in range(QUAD):
        work.dots[q] = rate * (work.products[t, work.quad[q]] * work.dots[q])
        work.totals[q] += work.dots[q]


@compiled()
def strongest_outputs_of(loss_grads: np.ndarray, lengths: np.ndarray, first: int, last: int, outputs: np.ndarray) -> None:
    """Of rows `first` to `last` of loss_grads [n, T, C] with lengths [n, T], the two outputs in which `Σ_t √η_t ‖ĥ_t‖ δ_t` is largest.

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
    blocks: np.ndarray, first: int, last: int, vectors: np.ndarray, factors: np.ndarray, units: np.ndarray, columns: np.ndarray
) -> None:
    """Fills blocks `first` to `last` of [B, T, R, BLOCK] with the vectors [n, T, R] of the rows `columns`, scaled.

    Vectors are multiplied by `factors` [n, T] and divided by the `units` [B] of their blocks; zeros fill up the last block.
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
def outline_blocks(blocks: Blocks, first: int, last: int, train: Factors, scales: np.ndarray) -> None:
    """Fills in what is known of whole blocks, `first` to `last`, once they are cut; `scales` [n] is 1, or 1 / N where normalised."""
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
                blocks.norms[block, t, column] = np.float32(train.norms[j, t] * (scales[j] / blocks.units[block]) * (1 + 1e-6))
                blocks.rests[block, t, column] = np.float32(train.rests[j, t] * (1 + 1e-6))
                norm = max(norm, blocks.norms[block, t, column])
                negative = max(negative, np.float32(train.negatives[j, t] * (1 + 1e-6)))
            blocks.negatives[block, t] = negative
            blocks.page_norms[page, t, place], blocks.page_negatives[page, t, place] = norm, negative
            for c in range(outputs):
                highest, lowest = blocks.loss_grads[block, t, c, 0], blocks.loss_grads[block, t, c, 0]
                for column in range(1, len(columns)):
                    highest = max(highest, blocks.loss_grads[block, t, c, column])
                    lowest = min(lowest, blocks.loss_grads[block, t, c, column])
                blocks.highest[page, t, c, place], blocks.lowest[page, t, c, place] = highest, lowest


@compiled()
def scale_vectors(scaled: np.ndarray, first: int, last: int, vectors: np.ndarray, factors: np.ndarray, rows: np.ndarray) -> None:
    """Fills places `first` to `last` of scaled [m, T, R] with vectors [n, T, R] of these rows [m], multiplied by `factors` [n, T]."""
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
    """For rows `first` to `last` of activations [n, T, D] with these lengths [n, T], fills in the fields of `Factors`.

    `directions` [T, D, SKETCH_COLUMNS] float32 are orthonormal but for rounding, zeros behind them; or there are none, [T, D, 0]. `error`
    is of `scoring.sketch_error`. Additions may come in any order, since all is rounded up.
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
            for part in range(_parts(units)):
                begin, width = _part(units, part)
                for place in range(TILE):
                    addresses[place] = scaled.ctypes.data + np.uintp(4 * (place * units + begin))
                columns = directions.ctypes.data + np.uintp(4 * SKETCH_COLUMNS * (t * units + begin))
                add_sketches(addresses.ctypes.data, width, columns, sums.ctypes.data)
            for place in range(count):
                total = 0.0
                for r in range(SKETCH):
                    sketches[start + place, t, r] = sums[place, r]
                    total += np.float64(sums[place, r]) * np.float64(sums[place, r])
                rests[start + place, t] = np.sqrt(max(0.0, 1 - total) + error)


@compiled()
def find_terms(
    loss_grads: np.ndarray, lengths: np.ndarray, norm: np.ndarray, tolerance: float, first: int, last: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Terms` of rows `first` to `last` of loss_grads [n, T, C], lengths [n, T] and norm [n].

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
    """Of test rows `first` to `last`, the outputs in which the sum of its terms is largest, the largest last.

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


@_inner(forceinline=True)
def _magnitude(value: float) -> int:
    """The power of two of a number of at most 1, as 0 (smallest, and zero) to 255."""
    if value == 0:
        return 0
    _, exponent = math.frexp(value)
    return min(255, max(1, exponent + 250))


@compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
def strongest_places(blocks: Blocks, first: int, last: int, places: np.ndarray) -> None:
    """For outputs `first` to `last`, where the largest `Σ_t √η_t ‖ĥ_t‖ δ_tc` are, above and below zero: places in `columns` [2, C, P].

    Where there are fewer, the rest is −1. Sums are in float32; what is a little weaker serves as well.
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


@_inner(inline="always")
def _limit(pool: Pool, sign: int, i: int, divisor: float) -> float:
    """The threshold of what `Pool.bounds` holds: what is below it is not among the k best; what equals it may be, by its id."""
    limit = pool.floors[sign, i]
    if pool.filled[sign, i] == pool.scores.shape[2]:
        limit = max(limit, pool.scores[sign, i, 0])
    return limit * divisor * (1 - 1e-12)


@_inner(forceinline=True)
def _worse(scores: np.ndarray, rows: np.ndarray, ranks: np.ndarray, a: int, b: int) -> bool:
    return scores[a] < scores[b] or (scores[a] == scores[b] and ranks[rows[a]] > ranks[rows[b]])


@_inner()
def _keep(scores: np.ndarray, rows: np.ndarray, n: int, score: float, row: int, ranks: np.ndarray) -> int:
    """Puts a scored candidate into a heap of n, if it is one of the best; returns how many the heap then holds."""
    if n < len(scores):
        place = n
        scores[place], rows[place] = score, row
        while place > 0:
            parent = (place - 1) // 2
            if not _worse(scores, rows, ranks, place, parent):
                break
            scores[place], scores[parent] = scores[parent], scores[place]
            rows[place], rows[parent] = rows[parent], rows[place]
            place = parent
        return n + 1
    if score > scores[0] or (score == scores[0] and ranks[row] < ranks[rows[0]]):
        scores[0], rows[0] = score, row
        _sink(scores, rows, ranks, n)
    return n


@_inner()
def _sink(scores: np.ndarray, rows: np.ndarray, ranks: np.ndarray, n: int) -> None:
    """Puts the top of a heap of n into its place."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= n:
            return
        if child + 1 < n and _worse(scores, rows, ranks, child + 1, child):
            child += 1
        if not _worse(scores, rows, ranks, child, place):
            return
        scores[place], scores[child] = scores[child], scores[place]
        rows[place], rows[child] = rows[child], rows[place]
        place = child


@_inner(forceinline=True)
def _score(
    pool: Pool, i: int, test: _Addresses, train: _Addresses, row: int, work: _Work, n: int, rates: np.ndarray, ranks: np.ndarray
) -> None:
    """Scores n candidates of the pool's row i (test row `row`) and keeps the best."""
    if test.units >= _MANY_UNITS:
        _multiply_loss_grads(test, train, row, work, n)
        _score_by_bounds(pool, i, test, train, row, work, n, rates, ranks)
        return
    for first in range(0, n, QUAD):
        count = min(QUAD, n - first)
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
        _score_quad(test, train, row, work, rates.ctypes.data)
        _keep_scored(pool, i, test, train, row, work, count, ranks)


@_inner()
def _score_by_bounds(
    pool: Pool, i: int, test: _Addresses, train: _Addresses, row: int, work: _Work, n: int, rates: np.ndarray, ranks: np.ndarray
) -> None:
    """What `_score` does where scores are dear.

    Candidates come by their bounds, the highest first, and bounds give way to what they bound, checkpoint by checkpoint, until what is
    left cannot reach the threshold.
    """
    norm, divisor = load_float64(test.norm, row), load_float64(test.divisors, row)
    _bound_parts(test, train, row, work, n)
    for place in range(n):
        work.places[place] = place
    for place in range(n // 2 - 1, -1, -1):
        _sift(work.bounds, work.places, place, n)
    waiting = n
    while True:
        limits = (_limit(pool, 0, i, divisor), _limit(pool, 1, i, divisor))
        count = 0
        while count < QUAD and waiting > 0 and work.bounds[0] >= min(limits[0], limits[1]):
            candidate, bound = np.int64(work.places[0]), work.bounds[0]
            waiting -= 1
            work.bounds[0], work.places[0] = work.bounds[waiting], work.places[waiting]
            _sift(work.bounds, work.places, np.int64(0), waiting)
            if bound >= limits[work.codes[candidate] & 1]:
                work.quad[count] = candidate
                count += 1
        if count == 0:
            return
        for q in range(count, QUAD):
            work.quad[q] = work.quad[0]
        for q in range(QUAD):
            work.totals[q] = 0
            work.left[q] = 0
            for t in range(len(rates)):
                work.left[q] += work.uppers[t, work.quad[q]]
        hopeful = True
        for t in range(len(rates)):
            hopeful = False
            for q in range(count):
                code = work.codes[work.quad[q]]
                needed = limits[code & 1] * load_float64(train.divisors, code >> 1) - SLACK * norm * load_float64(train.norm, code >> 1)
                hopeful |= work.left[q] >= needed
            if not hopeful:
                break
            _add_part(test, train, row, work, t, rates[t])
            for q in range(count):
                part = -work.dots[q] if work.codes[work.quad[q]] & 1 else work.dots[q]
                work.left[q] += part - work.uppers[t, work.quad[q]]
        if hopeful:
            _keep_scored(pool, i, test, train, row, work, count, ranks)


@_inner(forceinline=True)
def _score_quad(test: _Addresses, train: _Addresses, row: int, work: _Work, rates: int) -> None:
    """Fills in `totals` of the candidates `quad`."""
    loss_grads = _of_quad(test.loss_grads, row, train.loss_grads, work, 0, test.checkpoints, test.outputs)
    activations = _of_quad(test.activations, row, train.activations, work, 0, test.checkpoints, test.units)
    score_quad(test.checkpoints, loss_grads, test.outputs, activations, test.units, rates, work.totals.ctypes.data)


@_inner(forceinline=True)
def _keep_scored(pool: Pool, i: int, test: _Addresses, train: _Addresses, row: int, work: _Work, count: int, ranks: np.ndarray) -> None:
    """Keeps the best of the first `count` candidates of `quad`, whose `totals` are whole."""
    divisor = load_float64(test.divisors, row)
    pool.tally[i, 2] += count
    for q in range(count):
        code = work.codes[work.quad[q]]
        sign, j = code & 1, code >> 1
        score = _normalized(-work.totals[q] if sign else work.totals[q], divisor, load_float64(train.divisors, j))
        if score > 0 and score >= pool.floors[sign, i]:
            pool.filled[sign, i] = _keep(pool.scores[sign, i], pool.rows[sign, i], pool.filled[sign, i], score, j, ranks)


@_inner()
def _sift(bounds: np.ndarray, listed: np.ndarray, place: int, n: int) -> None:
    while True:
        child = 2 * place + 1
        if child >= n:
            return
        if child + 1 < n and bounds[child + 1] > bounds[child]:
            child += 1
        if bounds[child] <= bounds[place]:
            return
        bounds[place], bounds[child] = bounds[child], bounds[place]
        listed[place], listed[child] = listed[child], listed[place]
        place = child


@compiled(forceinline=True)
def bound_block(blocks: Blocks, block: int, terms: Terms, i: int, cosines: int, above: int, below: int) -> None:
    """Upper bounds of the scores of test row i with a block's columns, and of the negated scores, to two addresses: [BLOCK] float32.

    Of the score `Σ_t p_t q_t ‖ĥ_t‖ ‖ĥ'_t‖`, with `p = δ_t · δ'_t` and q the cosine of the activations, p is known but for the entries that
    are no terms, whose norms bound it. q is between −κ and 1, where κ is the sum of the shares of negative entries (0 after a ReLU); or,
    if `cosines` is not 0 but the address of the products of sketches [T, BLOCK], it is known but for what is outside of the sketches. The
    bound is that of the corners of the two intervals.
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
    """The bounds of `bound_block`, no smaller than those of any column of a block, of all blocks of a page: [PAGE] float32.

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


@_inner(forceinline=True)
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


def choose_by_outputs(pool: Pool, rows: np.ndarray, chosen: np.ndarray, outputs: np.ndarray, strongest: np.ndarray) -> None:
    """Makes the pilots of the rows `chosen`: what is strongest in the outputs that a test row is strongest in.

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
    pool: Pool, rows: np.ndarray, chosen: np.ndarray, leaders: np.ndarray, outputs: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Makes the pilots of the rows `chosen`: the best of the pool's rows `leaders`, ascending, before and after each.

    Of those alone that are strongest in the same output; returns which of the rows have such a leader, [n] bool. `outputs` is of
    `strongest_outputs`; `places` are of training rows, in `Blocks.columns`.
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
        best = np.where(np.arange(k) < pool.filled[:, leading, None], places[pool.rows[:, leading]], NO_PLACE)
        pool.pilots[:, following, side * k : (side + 1) * k] = best
        led[following] = True
    pool.pilots[:, led] = np.sort(pool.pilots[:, led])
    return led


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
    one, other = _addresses(test), _addresses(train)
    held = _work(one.checkpoints)
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
                if count == _ROOM:
                    _score(pool, i, one, other, rows[i], work, count, rates, ranks)
                    count = 0
                pool.tally[i, 1] += 1
                work.codes[count] = 2 * np.int64(columns[pilot]) + sign
                count += 1
        _score(pool, i, one, other, rows[i], work, count, rates, ranks)
    _hold(held)


@_inner(forceinline=True)
def _levels(limits: tuple[float, float], unit: float, margin: float) -> tuple[np.float32, np.float32]:
    """What float32 bounds of either sign, off by at most `margin` and in this unit, are compared with."""
    return _level(limits[0] / unit - margin), _level(limits[1] / unit - margin)


@_inner(forceinline=True)
def _level(limit: float) -> np.float32:
    """A limit as float32, rounded down."""
    return np.float32(limit - 2e-7 * abs(limit))


@_inner(forceinline=True)
def _columns(blocks: Blocks, block: int) -> np.uint64:
    """Which columns a block has: a bit mask."""
    count = min(BLOCK, len(blocks.columns) - block * BLOCK)
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(BLOCK - count)


@_inner()
def _passing_blocks(
    blocks: Blocks, page: int, terms: Terms, row: int, norm: float, limits: tuple[float, float], margin: float, bounds: np.ndarray
) -> np.uint64:
    """Which blocks of a page may have columns that reach a limit with this test row: a bit mask. `bounds` [2, PAGE] float32 is room."""
    bound_page(blocks, page, terms, row, bounds.ctypes.data, bounds.ctypes.data + np.uintp(4 * PAGE))
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
    """Of the rows `chosen` [n] and pages `first` to `last`, counts columns of blocks that pass, and estimates how many of them do: [n]."""
    bounds = np.empty((2, PAGE), np.float32)
    some = np.empty((last - first) * PAGE, np.int64)
    pool, terms, blocks = borrowed(pool), borrowed(terms), borrowed(blocks)
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        row = rows[i]
        limits = (_limit(pool, 0, i, test.divisors[row]), _limit(pool, 1, i, test.divisors[row]))
        count = 0
        for page in range(first, last):
            mask = _passing_blocks(blocks, page, terms, row, test.norm[row], limits, margin, bounds)
            while mask:
                some[count] = page * PAGE + lowest_bit(mask)
                bounded[i] += count_bits(_columns(blocks, some[count]))
                count += 1
                mask &= mask - np.uint64(1)
        found = 0
        for sample in range(min(_SAMPLE, count)):
            block = some[sample * count // min(_SAMPLE, count)]
            bound_block(blocks, block, terms, row, 0, bounds.ctypes.data, bounds.ctypes.data + np.uintp(4 * BLOCK))
            levels = _levels(limits, blocks.units[block] * test.norm[row], margin)
            for sign in range(2):
                found += count_bits(at_least(bounds.ctypes.data + np.uintp(4 * BLOCK * sign), levels[sign]) & _columns(blocks, block))
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
    """Searches pages `first` to `last` for the best of the pool's rows, whose test rows are `rows` [n]; of those `chosen` [n] only.

    `margin` is the float32 error of a bound over N and the block's unit.
    """
    one, other = _addresses(test), _addresses(train)
    held = _work(one.checkpoints)
    work = borrowed(held)
    bounds = np.empty((2, BLOCK), np.float32)
    masks = np.zeros(len(chosen), np.uint64)
    reached = np.zeros((2, len(chosen)), np.int64)
    waiting = np.empty(TILE, np.int64)
    sketches = np.empty(TILE, np.uintp)
    cosines = np.empty((TILE, one.checkpoints, BLOCK), np.float32)
    pool, terms, blocks, rates, ranks = borrowed(pool), borrowed(terms), borrowed(blocks), borrowed(rates), borrowed(ranks)
    for page in range(first, last):
        for i in range(len(chosen)):
            if chosen[i]:
                row = rows[i]
                limits = (_limit(pool, 0, i, test.divisors[row]), _limit(pool, 1, i, test.divisors[row]))
                masks[i] = _passing_blocks(blocks, page, terms, row, test.norm[row], limits, margin, bounds)
        for place in range(min(PAGE, len(blocks.units) - page * PAGE)):
            block = page * PAGE + place
            columns = _columns(blocks, block)
            count = 0
            for i in range(len(chosen) + 1):
                if i < len(chosen) and chosen[i]:
                    if masks[i] >> np.uint64(place) & np.uint64(1):
                        above, below = _passing_columns(pool, i, one, rows[i], blocks, block, terms, np.uintp(0), margin, bounds)
                        if one.sketched:
                            waiting[count] = i
                            count += (above | below) != 0
                        elif above | below:
                            _search_columns(pool, i, one, other, rows[i], blocks, block, above, below, reached, work, rates, ranks)
                    else:
                        pool.tally[i, 0] += count_bits(columns)
                if count < TILE and (i < len(chosen) or count == 0):
                    continue
                # Rows that wait share the block's sketches.
                for own in range(TILE):
                    sketches[own] = _vector(one.sketches, rows[waiting[min(own, count - 1)]] * one.checkpoints, SKETCH)
                theirs = _vector(blocks.sketches.ctypes.data, block * one.checkpoints * SKETCH, BLOCK)
                multiply_sketches(one.checkpoints, sketches.ctypes.data, theirs, cosines.ctypes.data)
                for own in range(count):
                    at = waiting[own]
                    known = cosines.ctypes.data + np.uintp(4 * BLOCK * one.checkpoints * own)
                    above, below = _passing_columns(pool, at, one, rows[at], blocks, block, terms, known, margin, bounds)
                    if above | below:
                        _search_columns(pool, at, one, other, rows[at], blocks, block, above, below, reached, work, rates, ranks)
                count = 0
    _hold(held)


@_inner(forceinline=True)
def _passing_columns(
    pool: Pool,
    i: int,
    test: _Addresses,
    row: int,
    blocks: Blocks,
    block: int,
    terms: Terms,
    cosines: int,
    margin: float,
    bounds: np.ndarray,
) -> tuple[np.uint64, np.uint64]:
    """Which columns of a block may be proponents of the pool's row i (test row `row`), and which opponents: two bit masks.

    `cosines` as for `bound_block`; `bounds` [2, BLOCK] float32 is room.
    """
    divisor = load_float64(test.divisors, row)
    limits = (_limit(pool, 0, i, divisor), _limit(pool, 1, i, divisor))
    levels = _levels(limits, blocks.units[block] * load_float64(test.norm, row), margin)
    bound_block(blocks, block, terms, row, cosines, bounds.ctypes.data, bounds.ctypes.data + np.uintp(4 * BLOCK))
    columns = _columns(blocks, block)
    return at_least(bounds.ctypes.data, levels[0]) & columns, at_least(bounds.ctypes.data + np.uintp(4 * BLOCK), levels[1]) & columns


@_inner(forceinline=True)
def _search_columns(
    pool: Pool,
    i: int,
    test: _Addresses,
    train: _Addresses,
    row: int,
    blocks: Blocks,
    block: int,
    above: np.uint64,
    below: np.uint64,
    reached: np.ndarray,
    work: _Work,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Scores the columns of a block that pass, above or below, for the pool's row i, but for its pilots; `reached` is of `_pilots`."""
    count = 0
    for sign in range(2):
        mask = (above if sign == 0 else below) & ~_pilots(pool, sign, i, block, reached)
        while mask:
            j = np.int64(blocks.columns[block * BLOCK + lowest_bit(mask)])
            mask &= mask - np.uint64(1)
            work.codes[count] = 2 * j + sign
            count += 1
    pool.tally[i, 1] += count
    _score(pool, i, test, train, row, work, count, rates, ranks)


@_inner(forceinline=True)
def _pilots(pool: Pool, sign: int, i: int, block: int, reached: np.ndarray) -> np.uint64:
    """Which columns of a block are among the pilots of the pool's row i: a bit mask.

    Blocks are asked for in their order: `reached` [2, n] is how many pilots were before the block that was asked for last.
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
    """`Σ_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)` in float32 of rows `first` to `last` with the columns of a block, into sums [_TILES * TILE, BLOCK].

    loss_grads [n, T, C] and activations [n, T, D] are of rows, those of training examples [B, T, C or D, BLOCK] of blocks.
    """
    checkpoints, outputs, units = loss_grads.shape[1], loss_grads.shape[2], activations.shape[2]
    products = np.empty((_TILES * TILE, BLOCK), np.float32)
    sums[:] = 0
    rows = np.empty(TILE, np.uintp)
    addresses = rows.ctypes.data
    for t in range(checkpoints):
        products[:] = 0
        place = block * checkpoints + t
        # Part after part: their sums are short, and the part of the block is in the cache for all tiles.
        for part in range(_parts(outputs)):
            start, width = _part(outputs, part)
            columns = train_loss_grads.ctypes.data + np.uintp(4 * BLOCK * (place * outputs + start))
            for tile in range(first, last, TILE):
                _addresses_of(loss_grads, tile, last, t, start, rows)
                target = products.ctypes.data + np.uintp(4 * BLOCK * (tile - first))
                ahead = _ahead(columns, width, (tile - first) // TILE)
                add_block(addresses, width, columns, ahead, target)
        for part in range(_parts(units)):
            start, width = _part(units, part)
            columns = train_activations.ctypes.data + np.uintp(4 * BLOCK * (place * units + start))
            for tile in range(first, last, TILE):
                _addresses_of(activations, tile, last, t, start, rows)
                offset = np.uintp(4 * BLOCK * (tile - first))
                factors, target = products.ctypes.data + offset, sums.ctypes.data + offset
                ahead = _ahead(columns, width, (tile - first) // TILE)
                add_scaled_block(addresses, width, columns, ahead, factors, target)


@_inner(forceinline=True)
def _ahead(columns: int, width: int, turn: int) -> Any:
    """The address of what a tile, the turn-th of a part of a block, brings into the cache of the next part, which follows in memory."""
    return columns + np.uintp(4 * BLOCK * width + AHEAD * width * turn)


@_inner(forceinline=True)
def _addresses_of(vectors: np.ndarray, first: int, last: int, t: int, start: int, addresses: np.ndarray) -> None:
    """The addresses of entries `start` on of checkpoint t of rows `first` on of vectors [n, T, R]; beyond `last`, of the last row."""
    _, checkpoints, width = vectors.shape
    for place in range(TILE):
        row = min(first + place, last - 1)
        addresses[place] = vectors.ctypes.data + np.uintp(4 * ((row * checkpoints + t) * width + start))


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
    """Multiplies all pairs of the pool's rows `first` to `last` with blocks `start` to `stop` and searches them; `rows` are test rows.

    loss_grads [n, T, C] float32 are `√η_t ‖ĥ_t‖ δ_t` over N, activations [n, T, D] float32 of length 1, of the pool's rows.
    train_activations [B, T, D, BLOCK] are the training examples', of length 1. A product in these units, N and the block's, is off by at
    most `margin`; `width` is twice the error of any of the search, in units of N.
    """
    room = pool.bounds.shape[2] - BLOCK
    one, other = _addresses(test), _addresses(train)
    held = _work(one.checkpoints)
    work = borrowed(held)
    pool, blocks, rates, ranks = borrowed(pool), borrowed(blocks), borrowed(rates), borrowed(ranks)
    sums = np.empty((_TILES * TILE, BLOCK), np.float32)
    for block in range(start, stop):
        columns, unit = _columns(blocks, block), blocks.units[block]
        for group in range(first, last, _TILES * TILE):
            count = min(_TILES * TILE, last - group)
            multiply_rows(loss_grads, activations, group, group + count, blocks.loss_grads, train_activations, block, sums)
            for place in range(count):
                i = group + place
                norm, divisor = test.norm[rows[i]], test.divisors[rows[i]]
                limits = (_limit(pool, 0, i, divisor), _limit(pool, 1, i, divisor))
                levels = _levels(limits, unit * norm, margin)
                address = sums.ctypes.data + np.uintp(4 * BLOCK * place)
                for sign in range(2):
                    mask = (at_least(address, levels[0]) if sign == 0 else at_most(address, -levels[1])) & columns
                    if not mask:
                        continue
                    listed = pool.counts[sign, i]
                    while mask:
                        column = lowest_bit(mask)
                        mask &= mask - np.uint64(1)
                        value = np.float64(sums[place, column])
                        pool.bounds[sign, i, listed] = ((value if sign == 0 else -value) + margin) * (unit * norm)
                        pool.listed[sign, i, listed] = blocks.columns[block * BLOCK + column]
                        listed += 1
                    pool.counts[sign, i] = listed
                    if listed > room:
                        _sharpen(pool, sign, i, width * norm, divisor)
                        if pool.counts[sign, i] > room // 2:
                            _settle(pool, sign, i, one, other, rows[i], work, rates, ranks)
    _hold(held)


@_inner()
def _sharpen(pool: Pool, sign: int, i: int, width: float, divisor: float) -> None:
    """Raises the floor of row i to what its listed candidates prove, whose scores are at most `width` below their bounds."""
    bounds, listed = pool.bounds[sign, i], pool.listed[sign, i]
    k, n = pool.scores.shape[2], pool.counts[sign, i]
    if n >= k:
        proven = (_nth(bounds[:n].copy(), n - k) - width) / divisor
        pool.floors[sign, i] = max(pool.floors[sign, i], proven * (1 - 1e-12))
    limit = _limit(pool, sign, i, divisor)
    count = 0
    for place in range(n):
        if bounds[place] >= limit:
            bounds[count], listed[count] = bounds[place], listed[place]
            count += 1
    pool.counts[sign, i] = count


@_inner()
def _nth(values: np.ndarray, n: int) -> float:
    """What would be at place n, were the values sorted; they change places. `np.partition` takes longer to compile than all else."""
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
        # Between the two, all are the pivot.
        if n <= right:
            high = right
        elif n >= left:
            low = left
        else:
            break
    return values[n]


@_inner()
def _settle(
    pool: Pool, sign: int, i: int, test: _Addresses, train: _Addresses, row: int, work: _Work, rates: np.ndarray, ranks: np.ndarray
) -> None:
    """Scores the listed candidates of the pool's row i (test row `row`) whose bounds reach the threshold."""
    divisor = load_float64(test.divisors, row)
    count = 0
    for place in range(pool.counts[sign, i]):
        if pool.bounds[sign, i, place] >= _limit(pool, sign, i, divisor):
            work.codes[count] = 2 * np.int64(pool.listed[sign, i, place]) + sign
            count += 1
            if count == _ROOM:
                _score(pool, i, test, train, row, work, count, rates, ranks)
                count = 0
    _score(pool, i, test, train, row, work, count, rates, ranks)
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
    """Scores what is still listed for the pool's rows `first` to `last`; `width` as for `search_products`."""
    one, other = _addresses(test), _addresses(train)
    held = _work(one.checkpoints)
    work = borrowed(held)
    pool, rates, ranks = borrowed(pool), borrowed(rates), borrowed(ranks)
    for i in range(first, last):
        row = rows[i]
        for sign in range(2):
            _sharpen(pool, sign, i, width * test.norm[row], test.divisors[row])
            _settle(pool, sign, i, one, other, row, work, rates, ranks)
    _hold(held)


@compiled()
def take_best(pool: Pool, ranks: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes what the heaps of a sign hold: rows of the pool [P] int32, scores [P] and training rows [P], by row and best first."""
    pool, ranks = borrowed(pool), borrowed(ranks)
    total = pool.filled[sign].sum()
    found, scores, trains = np.empty(total, np.int32), np.empty(total), np.empty(total, np.int32)
    start = 0
    for i in range(pool.filled.shape[1]):
        n = pool.filled[sign, i]
        heap, rows = pool.scores[sign, i], pool.rows[sign, i]
        for left in range(n - 1, -1, -1):
            # The worst goes last.
            found[start + left], scores[start + left], trains[start + left] = i, heap[0], rows[0]
            heap[0], rows[0] = heap[left], rows[left]
            _sink(heap, rows, ranks, left)
        pool.filled[sign, i] = 0
        start += n
    return found, scores, trains
