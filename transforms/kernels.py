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
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from transforms.sums import LANES

# Columns of a strip: long enough to keep vector units busy, short enough that a strip that no bound lets through is skipped soon.
WIDTH = 256

# Columns whose sums a processor keeps in registers; of a strip's loss gradients and sketches those of a block lie together.
BLOCK = 64

# Columns that are tested at once for one that passes.
_GLANCE = 16

# Columns that pass a strip's first bounds, above which its bounds are sharpened all at once and not one by one.
_FEW = 3

NO_ROW = np.iinfo(np.int32).max

# How many outputs of a test example are taken as those that it is strongest in.
STRONGEST = 4

# Error of a float32 product of two sketches of length 1 at most, whose entries were rounded: γ(LANES + 3) and that of the rests.
_SKETCH_ERROR = 4e-6

# Error of float64 arithmetic on a score of the factors, over N N': of the canonical score (n / LANES additions of n terms, up to a
# million of them), and of the bounds that are computed in float64.
SLACK = 1e-11


def _compiled(**options: Any) -> Callable[[Callable], Callable]:
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


class Factors(NamedTuple):
    """What the scores of n examples are made of.

    Attributes:
        loss_grads, activations: [n, T, C] and [n, T, D] float32, as stored.
        lengths: √η_t ‖ĥ_t‖, [n, T] float64.
        negatives: the norm of ĥ_t's negative entries over ‖ĥ_t‖, rounded up, [n, T] float64. After a ReLU it is 0.
        sketches: [n, T, LANES] float32, ĥ_t over its length in as many orthonormal directions; or [n, T, 0], where nothing is sketched.
        rests: the length of what is outside of these directions, rounded up, [n, T] float64.
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


class Strips(NamedTuple):
    """Loss gradients of training examples, scaled, transposed and cut into strips of `WIDTH` columns, the strongest first.

    Attributes:
        columns: [m] int32, training rows; column j of strip s is `columns[s * WIDTH + j]`.
        loss_grads: [S, WIDTH / BLOCK, T, C, BLOCK] float32, `√η_t ‖ĥ_t‖ δ_t` over the strip's unit.
        norms: [S, T, WIDTH] float32, n_t over the strip's unit, rounded up.
        units: [S] float64, what a strip is scaled by: the largest N of its columns, or, in normalised strips, each column by its own.
        tops: [S, T] float64, the largest n_t of a strip (over N, where normalised).
        negatives: [S, T] float32, the largest of `Factors.negatives` in a strip, rounded up.
        sketches: [S, WIDTH / BLOCK, T, LANES, BLOCK] float32, of `Factors`; or an empty axis for `LANES`.
        rests: [S, T, WIDTH] float32, of `Factors`, rounded up.
    """

    columns: np.ndarray
    loss_grads: np.ndarray
    norms: np.ndarray
    units: np.ndarray
    tops: np.ndarray
    negatives: np.ndarray
    sketches: np.ndarray
    rests: np.ndarray


class Terms(NamedTuple):
    """The large entries of n test examples' scaled loss gradients, and the norm of the rest.

    Attributes:
        starts: [n, T + 1] int64; entries of checkpoint t of row i are `starts[i, t]` to `starts[i, t + 1]`.
        outputs: [E] int32.
        values: [E] float32, `√η_t ‖ĥ_t‖ δ_t / N`.
        rest: [n, T] float32, norm of the entries left out, rounded up.
        negatives, outside: [n, T] float32, `Factors.negatives` and `Factors.rests`, rounded up.
    """

    starts: np.ndarray
    outputs: np.ndarray
    values: np.ndarray
    rest: np.ndarray
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
        pilots: [2, n, P] int32, training rows that are searched before all others, ascending and perhaps repeated; `NO_ROW` fills up.
        tally: [n, 4] int64, pairs that norms skipped, examined, left after some activations, and scored.
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


@intrinsic
def _dot(_context: Any, x: Any, y: Any, n: Any) -> Any:
    """The dot product of two float32 vectors of length n at addresses x and y: products in float64, added as `sums.lane_sum` does.

    Written as vector instructions because no compiler may reorder a loop's additions to use them, and exact sums forbid to let it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, n = arguments
        integer, index = n.type, ir.IntType(32)
        floats, doubles = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.DoubleType(), LANES)
        indices, bits = ir.VectorType(index, LANES), ir.VectorType(ir.IntType(1), LANES)
        lanes = cgutils.alloca_once_value(builder, ir.Constant(doubles, [0.0] * LANES))

        def address(base: Any, offset: Any) -> Any:
            return builder.inttoptr(builder.add(base, builder.mul(offset, ir.Constant(integer, 4))), floats.as_pointer())

        def add(left: Any, right: Any) -> None:
            product = builder.fmul(builder.fpext(left, doubles), builder.fpext(right, doubles))
            builder.store(builder.fadd(builder.load(lanes), product), lanes)

        whole = builder.sdiv(n, ir.Constant(integer, LANES))
        with cgutils.for_range(builder, whole) as loop:
            offset = builder.mul(loop.index, ir.Constant(integer, LANES))
            add(builder.load(address(x, offset), align=4), builder.load(address(y, offset), align=4))
        done = builder.mul(whole, ir.Constant(integer, LANES))
        rest = builder.trunc(builder.sub(n, done), index)
        with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(index, 0))):
            nothing = ir.Constant(indices, ir.Undefined)
            spread = builder.shuffle_vector(
                builder.insert_element(nothing, rest, ir.Constant(index, 0)), nothing, ir.Constant(indices, [0] * LANES)
            )
            mask = builder.icmp_signed("<", ir.Constant(indices, list(range(LANES))), spread)
            load = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(floats, [floats.as_pointer(), index, bits, floats]),
                f"llvm.masked.load.v{LANES}f32.p0",
            )
            zeros, alignment = ir.Constant(floats, [0.0] * LANES), ir.Constant(index, 4)
            add(*(builder.call(load, [address(base, done), alignment, mask, zeros]) for base in (x, y)))
        total, width = builder.load(lanes), LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(index, width), list(range(first, first + width))))
                for first in (0, width)
            ]
            total = builder.fadd(*halves)
        return builder.extract_element(total, ir.Constant(index, 0))

    return types.float64(types.uintp, types.uintp, types.intp), generate


@intrinsic
def _load(_context: Any, address: Any, index: Any) -> Any:
    """Number `index` of the float64 array at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, index = arguments
        offset = builder.mul(index, ir.Constant(index.type, 8))
        return builder.load(builder.inttoptr(builder.add(address, offset), ir.DoubleType().as_pointer()), align=8)

    return types.float64(types.uintp, types.intp), generate


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


@_compiled(forceinline=True)
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


@_inner(forceinline=True)
def _vector(start: int, record: int, width: int) -> Any:
    """The address of a record's float32 vector in an array of vectors of this width."""
    return start + np.uintp(4 * record * width)


@_inner(forceinline=True)
def _part(test: _Addresses, train: _Addresses, i: int, j: int, t: int, direction: float) -> tuple[float, float, bool]:
    """Of checkpoint t of a pair: δ_t · δ'_t, an upper bound of its part of the score, and whether signs allow a part above 0."""
    product = _loss_grad_product(test, train, i, j, t)
    i, j = i * test.checkpoints + t, j * test.checkpoints + t
    towards = direction * product
    # ĥ · ĥ' over both lengths.
    highest, lowest = 1.0, -min(1.0, _load(test.negatives, i) + _load(train.negatives, j))
    possible = towards > 0 or (towards < 0 and lowest < 0)
    if test.sketched:
        inside = _dot(_vector(test.sketches, i, LANES), _vector(train.sketches, j, LANES), LANES)
        outside = _load(test.rests, i) * _load(train.rests, j) + _SKETCH_ERROR
        highest, lowest = min(highest, inside + outside), max(lowest, inside - outside)
    length = _load(test.lengths, i) * _load(train.lengths, j)
    return product, max(towards * highest, towards * lowest) * length, possible


@_compiled()
def _bound(test: _Addresses, train: _Addresses, i: int, j: int, direction: float) -> float:
    """An upper bound of a pair's score, not normalised, from exact loss gradients and sketches of the activations.

    Minus infinity where all signs say that the score is not positive.
    """
    total = 0.0
    any_possible = False
    for t in range(test.checkpoints):
        _, upper, possible = _part(test, train, i, j, t, direction)
        total += upper
        any_possible |= possible
    return total if any_possible else -np.inf


@_inner(forceinline=True)
def _loss_grad_product(test: _Addresses, train: _Addresses, i: int, j: int, t: int) -> float:
    i, j = i * test.checkpoints + t, j * test.checkpoints + t
    return _dot(_vector(test.loss_grads, i, test.outputs), _vector(train.loss_grads, j, test.outputs), test.outputs)


@_inner(forceinline=True)
def _activation_product(test: _Addresses, train: _Addresses, i: int, j: int, t: int) -> float:
    i, j = i * test.checkpoints + t, j * test.checkpoints + t
    return _dot(_vector(test.activations, i, test.units), _vector(train.activations, j, test.units), test.units)


@_compiled()
def canonical_scores(test: Factors, train: Factors, rates: np.ndarray, tests: np.ndarray, trains: np.ndarray) -> np.ndarray:
    """`scoring.canonical_scores` of P pairs, the same bits, compiled: [P] float64."""
    scores = np.empty(len(tests))
    one, other = _addresses(test), _addresses(train)
    for p in range(len(tests)):
        i, j = tests[p], trains[p]
        total = 0.0
        for t in range(len(rates)):
            total += rates[t] * (_loss_grad_product(one, other, i, j, t) * _activation_product(one, other, i, j, t))
        scores[p] = _normalized(total, test.divisors[i], train.divisors[j])
    return scores


@_inner(forceinline=True)
def _normalized(score: float, test_divisor: float, train_divisor: float) -> float:
    divisor = train_divisor * test_divisor
    return score / divisor if divisor > 0 else 0.0


@_compiled()
def cut_strips(strips: Strips, first: int, last: int, train: Factors, scales: np.ndarray) -> None:
    """Fills strips `first` to `last`, whose `columns` and `units` are there already; `scales` [n] is 1, or 1 / N where normalised."""
    _, checkpoints, outputs = train.loss_grads.shape
    for s in range(first, last):
        columns = strips.columns[s * WIDTH : (s + 1) * WIDTH]
        strips.loss_grads[s] = 0
        strips.sketches[s] = 0
        for t in range(checkpoints):
            strips.tops[s, t] = 0
            strips.negatives[s, t] = 0
            strips.norms[s, t] = 0
            strips.rests[s, t] = 0
            for place in range(len(columns)):
                j = columns[place]
                scale = scales[j] / strips.units[s]
                strips.tops[s, t] = max(strips.tops[s, t], train.norms[j, t] * scales[j])
                strips.negatives[s, t] = max(strips.negatives[s, t], np.float32(train.negatives[j, t] * (1 + 1e-6)))
                strips.rests[s, t, place] = np.float32(train.rests[j, t] * (1 + 1e-6))
                block, column = place // BLOCK, place % BLOCK
                for r in range(train.sketches.shape[2]):
                    strips.sketches[s, block, t, r, column] = train.sketches[j, t, r]
                target = strips.loss_grads[s, block, t]
                strips.norms[s, t, place] = np.float32(train.norms[j, t] * scale * (1 + 1e-6))
                factor = train.lengths[j, t] * scale
                for c in range(outputs):
                    target[c, column] = np.float32(factor * train.loss_grads[j, t, c])


@_compiled(fastmath={"nnan", "nsz", "contract", "reassoc"})
def look_at_activations(
    activations: np.ndarray,
    lengths: np.ndarray,
    directions: np.ndarray,
    first: int,
    last: int,
    negatives: np.ndarray,
    sketches: np.ndarray,
    rests: np.ndarray,
) -> None:
    """For rows `first` to `last` of activations [n, T, D] with these lengths [n, T], fills in the fields of `Factors`.

    `directions` [T, R, D] float64 are orthonormal, R being `LANES` or 0. Additions may come in any order, since all is rounded up.
    """
    _, checkpoints, units = activations.shape
    for i in range(first, last):
        for t in range(checkpoints):
            vector = activations[i, t]
            least = np.float32(0)
            for d in range(units):
                least = min(least, vector[d])
            negatives[i, t] = 0
            if least < 0:
                total = 0.0
                for d in range(units):
                    value = min(np.float32(0), vector[d])
                    total += np.float64(value) * np.float64(value)
                negatives[i, t] = min(1.0, np.sqrt(total) / lengths[i, t] * (1 + 1e-6))
            if directions.shape[1]:
                total = 0.0
                for r in range(LANES):
                    direction = directions[t, r]
                    share = 0.0
                    for d in range(units):
                        share += np.float64(vector[d]) * direction[d]
                    share = share / lengths[i, t] if lengths[i, t] > 0 else 0.0
                    sketches[i, t, r] = np.float32(share)
                    total += share * share
                # A rest of nearly 0 is a difference of two numbers near 1.
                rests[i, t] = np.sqrt(max(0.0, 1 - total) + 1e-12 + 4e-16 * units)


@_compiled()
def find_terms(
    loss_grads: np.ndarray, lengths: np.ndarray, norm: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Terms` of rows of loss_grads [n, T, C], lengths [n, T] and norm [n].

    The entries left out have a norm of at most `tolerance` together, or are zero.
    """
    n, checkpoints, outputs = loss_grads.shape
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
            factor = lengths[i, t] / norm[i]
            for c in range(outputs):
                value = factor * loss_grads[i, t, c]
                sums[_magnitude(value)] += value * value
        least, left_out = 0, 0.0
        while least < 255 and (left_out + sums[least]) * (1 + 1e-9) <= tolerance * tolerance:
            left_out += sums[least]
            least += 1
        for t in range(checkpoints):
            starts[i, t] = size
            factor = lengths[i, t] / norm[i]
            small = 0.0
            for c in range(outputs):
                value = factor * loss_grads[i, t, c]
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


@_compiled()
def strongest_outputs(terms: Terms, outputs: int) -> np.ndarray:
    """Of each test row, the outputs in which the sum of its terms is largest, the largest last, each as `2 c` or, below zero, `2 c + 1`.

    [n, STRONGEST] int64; −1 where there are fewer.
    """
    n = len(terms.starts)
    found = np.empty((n, STRONGEST), np.int64)
    sums = np.empty(outputs, np.float64)
    sums[:] = 0
    for i in range(n):
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
    return found


@_inner(forceinline=True)
def _magnitude(value: float) -> int:
    """The power of two of a number of at most 1, as 0 (smallest, and zero) to 255."""
    if value == 0:
        return 0
    _, exponent = math.frexp(value)
    return min(255, max(1, exponent + 250))


@_compiled()
def strongest_rows(
    loss_grads: np.ndarray, lengths: np.ndarray, scales: np.ndarray, columns: np.ndarray, first: int, last: int, rows: np.ndarray
) -> None:
    """For outputs `first` to `last`, the training rows with the largest `Σ_t √η_t ‖ĥ_t‖ δ_tc`, above and below zero: rows [2, C, P].

    Places without a row hold −1.
    """
    checkpoints = loss_grads.shape[1]
    places = rows.shape[2]
    held = np.empty((2, last - first, places), np.float64)
    least = np.empty((2, last - first), np.int64)
    sums = np.empty(last - first, np.float64)
    held[:], least[:], rows[:, first:last] = 0, 0, -1
    for j in columns:
        sums[:] = 0
        for t in range(checkpoints):
            factor = lengths[j, t] * scales[j]
            for c in range(first, last):
                sums[c - first] += factor * loss_grads[j, t, c]
        for c in range(last - first):
            sign = 0 if sums[c] > 0 else 1
            value = abs(sums[c])
            place = least[sign, c]
            if value > held[sign, c, place]:
                held[sign, c, place] = value
                rows[sign, first + c, place] = j
                place = 0
                for other in range(1, places):
                    if held[sign, c, other] < held[sign, c, place]:
                        place = other
                least[sign, c] = place


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
    if score < scores[0] or (score == scores[0] and ranks[row] > ranks[rows[0]]):
        return n
    scores[0], rows[0] = score, row
    place = 0
    while True:
        child = 2 * place + 1
        if child >= n:
            return n
        if child + 1 < n and _worse(scores, rows, ranks, child + 1, child):
            child += 1
        if not _worse(scores, rows, ranks, child, place):
            return n
        scores[place], scores[child] = scores[child], scores[place]
        rows[place], rows[child] = rows[child], rows[place]
        place = child


@_inner()
def _settle(pool: Pool, sign: int, i: int, test: _Addresses, train: _Addresses, row: int, rates: np.ndarray, ranks: np.ndarray) -> None:
    """Scores the listed candidates of the pool's row i (test row `row`), the highest bound first, until no bound reaches the threshold."""
    bounds, listed = pool.bounds[sign, i], pool.listed[sign, i]
    products, uppers = np.empty(len(rates), np.float64), np.empty(len(rates), np.float64)
    direction = 1.0 if sign == 0 else -1.0
    norm, divisor = _load(test.norm, row), _load(test.divisors, row)
    n = pool.counts[sign, i]
    pool.counts[sign, i] = 0
    for start in range(n // 2 - 1, -1, -1):
        _sift(bounds, listed, start, n)
    limit = _limit(pool, sign, i, divisor)
    while n > 0 and bounds[0] >= limit:
        j = np.int64(listed[0])
        n -= 1
        bounds[0], listed[0] = bounds[n], listed[n]
        _sift(bounds, listed, np.int64(0), n)
        needed = limit * _load(train.divisors, j) - SLACK * norm * _load(train.norm, j)
        upper = 0.0
        for t in range(len(rates)):
            products[t], uppers[t], _ = _part(test, train, row, j, t, direction)
            upper += uppers[t]
        # Bounds of checkpoints give way to what they are, until what is left cannot reach the threshold.
        total = 0.0
        for t in range(len(rates)):
            if upper < needed:
                break
            term = rates[t] * (products[t] * _activation_product(test, train, row, j, t))
            total += term
            upper += direction * term - uppers[t]
        else:
            pool.tally[i, 3] += 1
            score = direction * _normalized(total, divisor, _load(train.divisors, j))
            if score > 0 and score >= pool.floors[sign, i]:
                pool.filled[sign, i] = _keep(pool.scores[sign, i], pool.rows[sign, i], pool.filled[sign, i], score, j, ranks)
                limit = _limit(pool, sign, i, divisor)
            continue
        pool.tally[i, 2] += 1


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


@intrinsic
def _bound_columns(
    _context: Any,
    checkpoints: Any,
    outputs: Any,
    starts: Any,
    term_outputs: Any,
    term_values: Any,
    term_rests: Any,
    negatives: Any,
    sketches: Any,
    rests: Any,
    strip_grads: Any,
    strip_norms: Any,
    strip_negatives: Any,
    strip_sketches: Any,
    strip_rests: Any,
    above: Any,
    below: Any,
) -> Any:
    """The loop of `_bound_strip`, sketched where `strip_sketches` is not 0; all but the first two are addresses.

    Vector instructions by hand, because the sums of 64 columns stay in registers only if they have no address.
    """
    width, count = LANES, BLOCK // LANES
    floats, f32, i32, i64 = ir.VectorType(ir.FloatType(), width), ir.FloatType(), ir.IntType(32), ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (checkpoints, outputs, starts, term_outputs, term_values, term_rests, negatives, sketches, rests, strip_grads, strip_norms,
         strip_negatives, strip_sketches, strip_rests, above, below) = arguments  # fmt: skip
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(floats, [floats, floats, floats]), f"llvm.fmuladd.v{width}f32"
        )

        def number(value: int) -> Any:
            return ir.Constant(i64, value)

        def at(base: Any, index: Any, kind: Any, size: int = 4) -> Any:
            return builder.load(builder.inttoptr(builder.add(base, builder.mul(index, number(size))), kind.as_pointer()), align=4)

        def spread(value: Any) -> Any:
            nothing = ir.Constant(floats, ir.Undefined)
            first = builder.insert_element(nothing, value, ir.Constant(i32, 0))
            return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(i32, width), [0] * width))

        def constant(value: float) -> Any:
            return ir.Constant(floats, [value] * width)

        def largest(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def smallest(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", one, other), one, other)

        def multiplied(one: Any, other: Any, added: Any) -> Any:
            return builder.call(fused, [one, other, added])

        def variables() -> list[Any]:
            return [cgutils.alloca_once(builder, floats) for _ in range(count)]

        def clear(*groups: list[Any]) -> None:
            for group in groups:
                for variable in group:
                    builder.store(constant(0.0), variable)

        def add_products(sums: list[Any], factor: Any, base: Any, row: Any) -> None:
            index = builder.mul(row, number(BLOCK))
            for place, variable in enumerate(sums):
                vector = at(base, builder.add(index, number(place * width)), floats)
                builder.store(multiplied(spread(factor), vector, builder.load(variable)), variable)

        aboves, belows, products, cosines = variables(), variables(), variables(), variables()
        sketched = builder.icmp_unsigned("!=", strip_sketches, number(0))
        with cgutils.for_range(builder, number(WIDTH // BLOCK)) as block:
            column = builder.mul(block.index, number(BLOCK))
            first = builder.mul(block.index, checkpoints)
            clear(aboves, belows)
            with cgutils.for_range(builder, checkpoints) as checkpoint:
                t = checkpoint.index
                clear(products, cosines)
                start, stop = at(starts, t, i64, 8), at(starts, builder.add(t, number(1)), i64, 8)
                with cgutils.for_range_slice(builder, start, stop, number(1)) as (e, _):
                    output = builder.sext(at(term_outputs, e, i32), i64)
                    row = builder.add(builder.mul(builder.add(first, t), outputs), output)
                    add_products(products, at(term_values, e, f32), strip_grads, row)
                with builder.if_then(sketched), cgutils.for_range(builder, number(LANES)) as direction:
                    own = builder.add(builder.mul(t, number(LANES)), direction.index)
                    row = builder.add(builder.mul(builder.add(first, t), number(LANES)), direction.index)
                    add_products(cosines, at(sketches, own, f32), strip_sketches, row)
                against = smallest(
                    spread(builder.fmul(builder.fadd(at(negatives, t, f32), at(strip_negatives, t, f32)), ir.Constant(f32, 1 + 1e-6))),
                    constant(1.0),
                )
                rest, outside = spread(at(term_rests, t, f32)), spread(at(rests, t, f32))
                index = builder.add(builder.mul(t, number(WIDTH)), column)
                for place in range(count):
                    there = builder.add(index, number(place * width))
                    slack, product = builder.fmul(rest, at(strip_norms, there, floats)), builder.load(products[place])
                    high, low = builder.fadd(product, slack), builder.fsub(product, slack)
                    with builder.if_else(sketched) as (yes, no):
                        with yes:
                            room = multiplied(outside, at(strip_rests, there, floats), constant(_SKETCH_ERROR))
                            cosine = builder.load(cosines[place])
                            top = smallest(builder.fadd(cosine, room), constant(1.0))
                            bottom = largest(builder.fsub(cosine, room), builder.fsub(constant(0.0), against))
                            corners = [builder.fmul(p, q) for p in (high, low) for q in (top, bottom)]
                            most = largest(largest(corners[0], corners[1]), largest(corners[2], corners[3]))
                            least = smallest(smallest(corners[0], corners[1]), smallest(corners[2], corners[3]))
                            builder.store(builder.fadd(builder.load(aboves[place]), most), aboves[place])
                            builder.store(builder.fsub(builder.load(belows[place]), least), belows[place])
                        with no:
                            minus_low = builder.fsub(constant(0.0), low)
                            most = largest(high, builder.fmul(against, minus_low))
                            least = largest(minus_low, builder.fmul(against, high))
                            builder.store(builder.fadd(builder.load(aboves[place]), most), aboves[place])
                            builder.store(builder.fadd(builder.load(belows[place]), least), belows[place])
            for place in range(count):
                there = builder.mul(builder.add(column, number(place * width)), number(4))
                for target, variable in ((above, aboves[place]), (below, belows[place])):
                    builder.store(builder.load(variable), builder.inttoptr(builder.add(target, there), floats.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, *[types.uintp] * 14), generate


@_compiled(forceinline=True)
def _bound_strip(strips: Strips, s: int, test: Factors, terms: Terms, i: int, sketched: bool, above: np.ndarray, below: np.ndarray) -> None:
    """Upper bounds of the scores of test row i with a strip's columns, and of the negated scores, into `above` and `below`: [WIDTH].

    Of the score `Σ_t p_t q_t ‖ĥ_t‖ ‖ĥ'_t‖`, with `p = δ_t · δ'_t` and q the cosine of the activations, p is known but for the entries that
    are no terms, whose norms bound it. q is between −κ and 1, where κ is the sum of the shares of negative entries (0 after a ReLU);
    or, `sketched`, it is known but for what is outside of the sketches. The bound is that of the corners of the two intervals.
    """
    checkpoints, outputs = strips.loss_grads.shape[2:4]
    row, strip = np.uintp(4 * i * checkpoints), np.uintp(4 * s * checkpoints)
    _bound_columns(
        checkpoints,
        outputs,
        terms.starts.ctypes.data + np.uintp(8 * i * (checkpoints + 1)),
        terms.outputs.ctypes.data,
        terms.values.ctypes.data,
        terms.rest.ctypes.data + row,
        terms.negatives.ctypes.data + row,
        test.sketches.ctypes.data + row * np.uintp(LANES),
        terms.outside.ctypes.data + row,
        strips.loss_grads.ctypes.data + strip * np.uintp(outputs * WIDTH),
        strips.norms.ctypes.data + strip * np.uintp(WIDTH),
        strips.negatives.ctypes.data + strip,
        strips.sketches.ctypes.data + strip * np.uintp(LANES * WIDTH) if sketched else np.uintp(0),
        strips.rests.ctypes.data + strip * np.uintp(WIDTH),
        above.ctypes.data,
        below.ctypes.data,
    )


def choose_by_outputs(pool: Pool, rows: np.ndarray, chosen: np.ndarray, outputs: np.ndarray, strongest: np.ndarray) -> None:
    """Makes the pilots of the rows `chosen`: the training rows that are strongest in the outputs that a test row is strongest in.

    `outputs` is of `strongest_outputs`, `strongest` of `strongest_rows`.
    """
    places = np.flatnonzero(chosen)
    codes = outputs[rows[places]]
    for sign in range(2):
        pilots = strongest[sign ^ (codes & 1), codes >> 1]
        pilots[(pilots < 0) | (codes < 0)[:, :, None]] = NO_ROW
        width = pilots.shape[1] * pilots.shape[2]
        pool.pilots[sign, places, :width] = np.sort(pilots.reshape(len(places), width))


def choose_by_leaders(pool: Pool, rows: np.ndarray, chosen: np.ndarray, leaders: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Makes the pilots of the rows `chosen`: the best of the pool's rows `leaders`, ascending, before and after each.

    Of those alone that are strongest in the same output; returns which of the rows have such a leader, [n] bool. `outputs` is of
    `strongest_outputs`.
    """
    led = np.zeros(len(chosen), bool)
    k = pool.scores.shape[2]
    following = np.searchsorted(leaders, np.arange(len(chosen)))
    for side in range(2):
        near = following - 1 + side
        places = np.flatnonzero(chosen & (near >= 0) & (near < len(leaders)))
        leading = leaders[near[places]]
        same = outputs[rows[leading], STRONGEST - 1] == outputs[rows[places], STRONGEST - 1]
        places, leading = places[same], leading[same]
        best = np.where(np.arange(k) < pool.filled[:, leading, None], pool.rows[:, leading], NO_ROW)
        pool.pilots[:, places, side * k : (side + 1) * k] = best
        led[places] = True
    pool.pilots[:, led] = np.sort(pool.pilots[:, led])
    return led


def search_pilots(
    pool: Pool, test: Factors, rows: np.ndarray, train: Factors, chosen: np.ndarray, rates: np.ndarray, ranks: np.ndarray
) -> None:
    """Searches the pilots of the rows `chosen` [n]."""
    _list_pilots(pool, test, rows, train, chosen)
    settle_rows(pool, 0, len(rows), test, rows, train, rates, ranks, np.inf)


@_compiled()
def _list_pilots(pool: Pool, test: Factors, rows: np.ndarray, train: Factors, chosen: np.ndarray) -> None:
    one, other = _addresses(test), _addresses(train)
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        row = rows[i]
        for sign in range(2):
            pilot = pool.pilots[sign, i]
            count = 0
            for place in range(len(pilot)):
                j = np.int64(pilot[place])
                if j == NO_ROW:
                    break
                if place > 0 and j == pilot[place - 1]:
                    continue
                pool.tally[i, 1] += 1
                upper = _bound(one, other, row, j, 1.0 if sign == 0 else -1.0)
                if upper > -np.inf:
                    pool.bounds[sign, i, count] = _listed_bound(upper, test.norm[row] * train.norm[j], train.divisors[j])
                    pool.listed[sign, i, count] = j
                    count += 1
            pool.counts[sign, i] = count


@_compiled()
def count_passing(
    pool: Pool,
    test: Factors,
    rows: np.ndarray,
    terms: Terms,
    strips: Strips,
    sample: np.ndarray,
    chosen: np.ndarray,
    margin: float,
    bounded: np.ndarray,
    passing: np.ndarray,
) -> None:
    """Of the pairs of the rows `chosen` [n] with some strips, counts those that norms do not skip, and those that then pass: [n] each."""
    above, below = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for i in range(len(chosen)):
        if not chosen[i]:
            continue
        row = rows[i]
        limits = (_limit(pool, 0, i, test.divisors[row]), _limit(pool, 1, i, test.divisors[row]))
        for s in sample:
            if _skips(test, row, strips, s, min(limits[0], limits[1])):
                continue
            width = min(WIDTH, len(strips.columns) - s * WIDTH)
            _bound_strip(strips, s, test, terms, row, False, above, below)
            bounded[i] += width
            unit = strips.units[s] * test.norm[row]
            for place in range(width):
                passing[i] += above[place] >= limits[0] / unit - margin
                passing[i] += below[place] >= limits[1] / unit - margin


def search_strips(
    pool: Pool,
    test: Factors,
    rows: np.ndarray,
    terms: Terms,
    train: Factors,
    strips: Strips,
    chosen: np.ndarray,
    rates: np.ndarray,
    ranks: np.ndarray,
    first: int,
    last: int,
    margin: float,
) -> None:
    """Searches strips `first` to `last` for the best of the pool's rows, whose test rows are `rows` [n]; of those `chosen` [n] only.

    `margin` is the float32 error of a bound over N and the strip's unit.
    """
    _list_strips(pool, test, rows, terms, train, strips, chosen, rates, ranks, first, last, margin)
    settle_rows(pool, 0, len(rows), test, rows, train, rates, ranks, np.inf)


@_compiled()
def _list_strips(
    pool: Pool,
    test: Factors,
    rows: np.ndarray,
    terms: Terms,
    train: Factors,
    strips: Strips,
    chosen: np.ndarray,
    rates: np.ndarray,
    ranks: np.ndarray,
    first: int,
    last: int,
    margin: float,
) -> None:
    room = pool.bounds.shape[2] - WIDTH
    above, below = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    one, other = _addresses(test), _addresses(train)
    for s in range(first, last):
        columns = strips.columns[s * WIDTH : (s + 1) * WIDTH]
        for i in range(len(chosen)):
            if not chosen[i]:
                continue
            row = rows[i]
            limits = (_limit(pool, 0, i, test.divisors[row]), _limit(pool, 1, i, test.divisors[row]))
            if _skips(test, row, strips, s, min(limits[0], limits[1])):
                pool.tally[i, 0] += len(columns)
                continue
            _bound_strip(strips, s, test, terms, row, False, above, below)
            unit = strips.units[s] * test.norm[row]
            levels = (_level(limits[0] / unit - margin), _level(limits[1] / unit - margin))
            if test.sketches.shape[2]:
                passing = 0
                for place in range(WIDTH):
                    passing += (above[place] >= levels[0]) + (below[place] >= levels[1])
                if passing == 0:
                    continue
                if passing > _FEW:
                    _bound_strip(strips, s, test, terms, row, True, above, below)
            for sign in range(2):
                bounds, level = (above if sign == 0 else below), levels[sign]
                pilot, listed, kept = pool.pilots[sign, i], pool.listed[sign, i], pool.bounds[sign, i]
                count = pool.counts[sign, i]
                for start in range(0, len(columns), _GLANCE):
                    passing = 0
                    for place in range(start, start + _GLANCE):
                        passing += bounds[place] >= level
                    if passing:
                        for place in range(start, min(start + _GLANCE, len(columns))):
                            if bounds[place] < level:
                                continue
                            j = np.int64(columns[place])
                            if _holds(pilot, j):
                                continue
                            # Now, because the strip's rows are in the cache.
                            pool.tally[i, 1] += 1
                            upper = _listed_bound(
                                _bound(one, other, row, j, 1.0 if sign == 0 else -1.0), test.norm[row] * train.norm[j], train.divisors[j]
                            )
                            if upper >= limits[sign]:
                                kept[count], listed[count] = upper, j
                                count += 1
                pool.counts[sign, i] = count
                if count > room:
                    _settle(pool, sign, i, one, other, row, rates, ranks)


@_inner(forceinline=True)
def _holds(ascending: np.ndarray, row: int) -> bool:
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low < len(ascending) and ascending[low] == row


@_inner(forceinline=True)
def _listed_bound(upper: float, norms: float, divisor: float) -> float:
    """A pair's bound as `Pool.bounds` holds it, `norms` being N N'."""
    return (upper + SLACK * norms) / divisor


@_inner(forceinline=True)
def _skips(test: Factors, row: int, strips: Strips, s: int, limit: float) -> bool:
    """Whether Cauchy–Schwarz, checkpoint by checkpoint, keeps a whole strip below the limit."""
    top = 0.0
    for t in range(strips.tops.shape[1]):
        top += test.norms[row, t] * strips.tops[s, t]
    return top * (1 + 1e-9) < limit


def give_up(pool: Pool, chosen: np.ndarray) -> None:
    """Forgets the best of rows that are not `chosen` [n], but not what they prove of thresholds."""
    full = pool.filled == pool.scores.shape[2]
    proven = np.where(full, np.maximum(pool.floors, pool.scores[:, :, 0]), pool.floors)
    pool.floors[:, ~chosen] = proven[:, ~chosen]
    pool.filled[:, ~chosen] = 0
    pool.pilots[:, ~chosen] = NO_ROW


@_compiled()
def search_products(
    pool: Pool,
    first: int,
    last: int,
    products: np.ndarray,
    test: Factors,
    rows: np.ndarray,
    train: Factors,
    columns: np.ndarray,
    unit: float,
    margin: float,
    width: float,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Searches a block of float32 scores for the best of the pool's rows `first` to `last`; `rows` are their test rows.

    products [n, m] are in units of N and `unit`, off by at most `margin`; `columns` [m] are their training rows. `width` is twice the
    error of any product of the search, in units of N.
    """
    room = pool.bounds.shape[2] - WIDTH
    one, other = _addresses(test), _addresses(train)
    for i in range(first, last):
        norm, divisor = test.norm[rows[i]], test.divisors[rows[i]]
        for sign in range(2):
            count = pool.counts[sign, i]
            scale = unit * norm
            level = _level(_limit(pool, sign, i, divisor) / scale - margin)
            for start in range(0, len(columns), WIDTH):
                stop = min(start + WIDTH, len(columns))
                passing = 0
                if sign == 0:
                    for place in range(start, stop):
                        passing += products[i, place] >= level
                else:
                    for place in range(start, stop):
                        passing += -products[i, place] >= level
                if not passing:
                    continue
                for place in range(start, stop):
                    value = products[i, place] if sign == 0 else -products[i, place]
                    if value >= level:
                        pool.bounds[sign, i, count] = (value + margin) * scale
                        pool.listed[sign, i, count] = columns[place]
                        count += 1
                if count > room:
                    pool.counts[sign, i] = count
                    _sharpen(pool, sign, i, width * norm, divisor)
                    if pool.counts[sign, i] > room // 2:
                        _settle(pool, sign, i, one, other, rows[i], rates, ranks)
                    count = pool.counts[sign, i]
                    level = _level(_limit(pool, sign, i, divisor) / scale - margin)
            pool.counts[sign, i] = count


@_inner(forceinline=True)
def _level(limit: float) -> np.float32:
    """A limit as float32, rounded down."""
    return np.float32(limit - 2e-7 * abs(limit))


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


@_compiled()
def settle_rows(
    pool: Pool,
    first: int,
    last: int,
    test: Factors,
    rows: np.ndarray,
    train: Factors,
    rates: np.ndarray,
    ranks: np.ndarray,
    width: float,
) -> None:
    """Scores what is still listed for the pool's rows `first` to `last`; `width` as for `search_products`, or infinite."""
    one, other = _addresses(test), _addresses(train)
    for i in range(first, last):
        row = rows[i]
        for sign in range(2):
            if width < np.inf:
                _sharpen(pool, sign, i, width * test.norm[row], test.divisors[row])
            _settle(pool, sign, i, one, other, row, rates, ranks)


def take_best(pool: Pool, ranks: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the heaps of a sign hold: rows of the pool [P] int32, scores [P] and training rows [P], by row and best first."""
    held = np.arange(pool.scores.shape[2]) < pool.filled[sign, :, None]
    found, scores, rows = held.nonzero()[0].astype(np.int32), pool.scores[sign][held], pool.rows[sign][held]
    order = np.lexsort((ranks[rows], -scores, found))
    return found[order], scores[order], rows[order]
