"""Canonical scores and bounds of single pairs, four candidates at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.heaps import keep_best, sift, threshold_of
from transforms.scoring.kernels.layout import (
    CANDIDATES_AT_ONCE,
    SLACK,
    Addresses,
    Factors,
    Pool,
    addresses_of,
)
from transforms.scoring.kernels.simd import QUAD, SKETCH, borrowed, dots, load_float64, score_quad

# Units of activations for which it pays to leave a candidate between checkpoints: else its bounds
# cost as much as its score.
_MANY_UNITS = 512


class Work(NamedTuple):
    """Room for the candidates of one test row that are scored together.

    Attributes:
        codes: [_ROOM] int64, `2 j` for training row j, and one more where it is a candidate for the
            opponents.
        products: [T, _ROOM] float64, δ_t · δ'_t.
        uppers: [T, _ROOM] float64, upper bounds of the parts of their scores, of opponents negated.
        bounds: [_ROOM] float64, a heap of bounds of their scores as `Pool.bounds` holds them, the
            largest on top.
        places: [_ROOM] int32, which candidates they are of.
        quad: [QUAD] int64, the candidates that are scored at once.
        dots, totals, left: [QUAD] float64, of these: products of their vectors, what there is of
            their scores, and upper bounds.
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


@inlined()
def allocate_work(checkpoints: int) -> Work:
    """Allocates room for candidates at so many checkpoints."""
    return Work(
        np.empty(CANDIDATES_AT_ONCE, np.int64),
        np.empty((checkpoints, CANDIDATES_AT_ONCE)),
        np.empty((checkpoints, CANDIDATES_AT_ONCE)),
        np.empty(CANDIDATES_AT_ONCE),
        np.empty(CANDIDATES_AT_ONCE, np.int32),
        np.empty(QUAD, np.int64),
        np.empty(QUAD),
        np.empty(QUAD),
        np.empty(QUAD),
    )


@inlined()
def hold_work(work: Work) -> None:
    """Keeps what was borrowed until here; it would be freed after its last use."""
    work.quad[0] = 0


@inlined(forceinline=True)
def vector_address(start: int, record: int, width: int) -> Any:
    """The address of a record's float32 vector in an array of vectors of this width."""
    return start + np.uintp(4 * record * width)


@inlined(forceinline=True)
def _of_quad(
    one: int, row: int, other: int, work: Work, t: int, checkpoints: int, width: int
) -> tuple[Any, ...]:
    """The addresses of a test row's vector of checkpoint t and of those of the candidates
    `work.quad`.
    """
    return (
        vector_address(one, row * checkpoints + t, width),
        vector_address(other, (work.codes[work.quad[0]] >> 1) * checkpoints + t, width),
        vector_address(other, (work.codes[work.quad[1]] >> 1) * checkpoints + t, width),
        vector_address(other, (work.codes[work.quad[2]] >> 1) * checkpoints + t, width),
        vector_address(other, (work.codes[work.quad[3]] >> 1) * checkpoints + t, width),
    )


@inlined(forceinline=True)
def _dots(
    one: int, row: int, other: int, work: Work, t: int, checkpoints: int, width: int, products: int
) -> None:
    """The dot products of a test row's vector of checkpoint t with those of the candidates
    `work.quad`, to an address.
    """
    x, y0, y1, y2, y3 = _of_quad(one, row, other, work, t, checkpoints, width)
    dots(x, y0, y1, y2, y3, width, products)


@inlined()
def _multiply_loss_grads(test: Addresses, train: Addresses, row: int, work: Work, n: int) -> None:
    """Fills in `products` of n candidates."""
    for first in range(0, n, QUAD):
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
        for t in range(test.checkpoints):
            target = work.products.ctypes.data + np.uintp(8 * (t * CANDIDATES_AT_ONCE + first))
            _dots(
                test.loss_grads,
                row,
                train.loss_grads,
                work,
                t,
                test.checkpoints,
                test.outputs,
                target,
            )


@inlined()
def _bound_parts(test: Addresses, train: Addresses, row: int, work: Work, n: int) -> None:
    """Fills in `uppers` and `bounds` of n candidates: from exact loss gradients, and from sketches
    of activations, if there are any.

    A bound is minus infinity where all signs say that the score is not positive, or, of an
    opponent, not negative.
    """
    norm = load_float64(test.norm, row)
    for first in range(0, n, QUAD):
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
            work.left[q] = 0
            work.totals[q] = 0
        for t in range(test.checkpoints):
            if test.sketched:
                _dots(
                    test.sketches,
                    row,
                    train.sketches,
                    work,
                    t,
                    test.checkpoints,
                    SKETCH,
                    work.dots.ctypes.data,
                )
            i = row * test.checkpoints + t
            for q in range(QUAD):
                place = work.quad[q]
                j = (work.codes[place] >> 1) * test.checkpoints + t
                towards = (
                    -work.products[t, place] if work.codes[place] & 1 else work.products[t, place]
                )
                # ĥ · ĥ' over both lengths.
                against = min(
                    1.0, load_float64(test.negatives, i) + load_float64(train.negatives, j)
                )
                highest, lowest = 1.0, -against
                if test.sketched:
                    outside = load_float64(test.rests, i) * load_float64(train.rests, j)
                    highest, lowest = (
                        min(highest, work.dots[q] + outside),
                        max(lowest, work.dots[q] - outside),
                    )
                length = load_float64(test.lengths, i) * load_float64(train.lengths, j)
                work.uppers[t, place] = max(towards * highest, towards * lowest) * length
                work.left[q] += work.uppers[t, place]
                # How many parts may be above 0.
                work.totals[q] += towards > 0 or (towards < 0 and against > 0)
        for q in range(min(QUAD, n - first)):
            j = work.codes[first + q] >> 1
            listed = _listed_bound(
                work.left[q], norm * load_float64(train.norm, j), load_float64(train.divisors, j)
            )
            work.bounds[first + q] = listed if work.totals[q] else -np.inf


@inlined(forceinline=True)
def _listed_bound(upper: float, norms: float, divisor: float) -> float:
    """A pair's bound as `Pool.bounds` holds it, `norms` being N N'."""
    return (upper + SLACK * norms) / divisor


@inlined(forceinline=True)
def _normalized(score: float, test_divisor: float, train_divisor: float) -> float:
    divisor = train_divisor * test_divisor
    return score / divisor if divisor > 0 else 0.0


@compiled()
def canonical_scores(
    test: Factors, train: Factors, rates: np.ndarray, tests: np.ndarray, trains: np.ndarray
) -> np.ndarray:
    """`scoring.canonical_scores` of P pairs, the same bits, compiled: [P] float64."""
    scores = np.empty(len(tests))
    one, other = addresses_of(test), addresses_of(train)
    held = allocate_work(one.checkpoints)
    work = borrowed(held)
    work.quad[:] = 0
    for p in range(len(tests)):
        work.codes[0] = 2 * trains[p]
        _score_quad(one, other, tests[p], work, rates.ctypes.data)
        scores[p] = _normalized(work.totals[0], test.divisors[tests[p]], train.divisors[trains[p]])
    hold_work(held)
    return scores


@inlined(forceinline=True)
def _add_part(test: Addresses, train: Addresses, row: int, work: Work, t: int, rate: float) -> None:
    """Adds checkpoint t to the `totals` of the candidates `quad`, and leaves it in `dots`."""
    _dots(
        test.activations,
        row,
        train.activations,
        work,
        t,
        test.checkpoints,
        test.units,
        work.dots.ctypes.data,
    )
    for q in range(QUAD):
        work.dots[q] = rate * (work.products[t, work.quad[q]] * work.dots[q])
        work.totals[q] += work.dots[q]


@inlined(forceinline=True)
def score_candidates(
    pool: Pool,
    i: int,
    test: Addresses,
    train: Addresses,
    row: int,
    work: Work,
    n: int,
    rates: np.ndarray,
    ranks: np.ndarray,
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


@inlined()
def _score_by_bounds(
    pool: Pool,
    i: int,
    test: Addresses,
    train: Addresses,
    row: int,
    work: Work,
    n: int,
    rates: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """What `_score` does where scores are dear.

    Candidates come by their bounds, the highest first, and bounds give way to what they bound,
    checkpoint by checkpoint, until what is left cannot reach the threshold.
    """
    norm, divisor = load_float64(test.norm, row), load_float64(test.divisors, row)
    _bound_parts(test, train, row, work, n)
    for place in range(n):
        work.places[place] = place
    for place in range(n // 2 - 1, -1, -1):
        sift(work.bounds, work.places, place, n)
    waiting = n
    while True:
        limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
        count = 0
        while count < QUAD and waiting > 0 and work.bounds[0] >= min(limits[0], limits[1]):
            candidate, bound = np.int64(work.places[0]), work.bounds[0]
            waiting -= 1
            work.bounds[0], work.places[0] = work.bounds[waiting], work.places[waiting]
            sift(work.bounds, work.places, np.int64(0), waiting)
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
                needed = limits[code & 1] * load_float64(
                    train.divisors, code >> 1
                ) - SLACK * norm * load_float64(train.norm, code >> 1)
                hopeful |= work.left[q] >= needed
            if not hopeful:
                break
            _add_part(test, train, row, work, t, rates[t])
            for q in range(count):
                part = -work.dots[q] if work.codes[work.quad[q]] & 1 else work.dots[q]
                work.left[q] += part - work.uppers[t, work.quad[q]]
        if hopeful:
            _keep_scored(pool, i, test, train, row, work, count, ranks)


@inlined(forceinline=True)
def _score_quad(test: Addresses, train: Addresses, row: int, work: Work, rates: int) -> None:
    """Fills in `totals` of the candidates `quad`."""
    loss_grads = _of_quad(
        test.loss_grads, row, train.loss_grads, work, 0, test.checkpoints, test.outputs
    )
    activations = _of_quad(
        test.activations, row, train.activations, work, 0, test.checkpoints, test.units
    )
    score_quad(
        test.checkpoints,
        loss_grads,
        test.outputs,
        activations,
        test.units,
        rates,
        work.totals.ctypes.data,
    )


@inlined(forceinline=True)
def _keep_scored(
    pool: Pool,
    i: int,
    test: Addresses,
    train: Addresses,
    row: int,
    work: Work,
    count: int,
    ranks: np.ndarray,
) -> None:
    """Keeps the best of the first `count` candidates of `quad`, whose `totals` are whole."""
    divisor = load_float64(test.divisors, row)
    pool.tally[i, 2] += count
    for q in range(count):
        code = work.codes[work.quad[q]]
        sign, j = code & 1, code >> 1
        score = _normalized(
            -work.totals[q] if sign else work.totals[q], divisor, load_float64(train.divisors, j)
        )
        if score > 0 and score >= pool.floors[sign, i]:
            pool.filled[sign, i] = keep_best(
                pool.scores[sign, i], pool.rows[sign, i], pool.filled[sign, i], score, j, ranks
            )
