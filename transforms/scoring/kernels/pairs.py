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
    Sides,
    addresses_of,
)
from transforms.scoring.kernels.register_tiles import SKETCH
from transforms.scoring.kernels.simd import QUAD, borrowed, dots, load_float64, score_quad

# Units of activations from which on it pays to drop a candidate between checkpoints: with fewer,
# its bounds cost as much as its score.
_MANY_UNITS = 512


class Work(NamedTuple):
    """Buffers for the candidates of one test row that are scored together, at most N of them.

    Attributes:
        codes: [N] int64, `2 j` for training row j, and one more where it is a candidate for the
            opponents.
        products: [T, N] float64, δ_t · δ'_t.
        uppers: [T, N] float64, upper bounds of the parts of their scores, of opponents negated.
        bounds: [N] float64, a heap of bounds of their scores as `Pool.bounds` holds them, the
            largest on top.
        bounded: [N] int32, the candidates of `bounds`.
        quad: [QUAD] int64, the candidates that are scored at once.
        dots, totals, left: [QUAD] float64, of these: products of their vectors, sums of the parts
            of their scores so far, and upper bounds.
    """

    codes: np.ndarray
    products: np.ndarray
    uppers: np.ndarray
    bounds: np.ndarray
    bounded: np.ndarray
    quad: np.ndarray
    dots: np.ndarray
    totals: np.ndarray
    left: np.ndarray


class Scorer(NamedTuple):
    """`Sides` by their addresses, and the buffers that their pairs are scored in."""

    test: Addresses
    train: Addresses
    rates: np.ndarray
    ranks: np.ndarray
    work: Work


@inlined()
def allocate_work(checkpoints: int) -> Work:
    """Allocates buffers for candidates at so many checkpoints."""
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
    """Keeps borrowed buffers until here; they would be freed after their last use."""
    work.quad[0] = 0


@inlined(forceinline=True)
def scorer_of(sides: Sides, work: Work) -> Scorer:
    """Returns the scorer of `sides`, which must outlive it, as must `work`."""
    return Scorer(
        addresses_of(sides.test),
        addresses_of(sides.train),
        borrowed(sides.rates),
        borrowed(sides.ranks),
        borrowed(work),
    )


@inlined(forceinline=True)
def vector_address(start: int, record: int, width: int) -> Any:
    """Returns the address of a record's float32 vector in an array of vectors of this width."""
    return start + np.uintp(4 * record * width)


@inlined(forceinline=True)
def _quad_addresses(
    test: int, row: int, train: int, work: Work, t: int, checkpoints: int, width: int
) -> tuple[Any, ...]:
    """Returns the addresses of a test row's vector of checkpoint t and of those of the candidates
    `work.quad`.
    """
    return (
        vector_address(test, row * checkpoints + t, width),
        vector_address(train, (work.codes[work.quad[0]] >> 1) * checkpoints + t, width),
        vector_address(train, (work.codes[work.quad[1]] >> 1) * checkpoints + t, width),
        vector_address(train, (work.codes[work.quad[2]] >> 1) * checkpoints + t, width),
        vector_address(train, (work.codes[work.quad[3]] >> 1) * checkpoints + t, width),
    )


@inlined(forceinline=True)
def _multiply_quad(
    test: int,
    row: int,
    train: int,
    work: Work,
    t: int,
    checkpoints: int,
    width: int,
    products: int,
) -> None:
    """Writes the dot products of a test row's vector of checkpoint t with those of the candidates
    `work.quad` to an address.
    """
    x, y0, y1, y2, y3 = _quad_addresses(test, row, train, work, t, checkpoints, width)
    dots(x, y0, y1, y2, y3, width, products)


@inlined()
def multiply_loss_grads(test: Addresses, train: Addresses, row: int, work: Work, n: int) -> None:
    """Fills in `products` of n candidates of test row `row`."""
    for first in range(0, n, QUAD):
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
        for t in range(test.checkpoints):
            target = work.products.ctypes.data + np.uintp(8 * (t * CANDIDATES_AT_ONCE + first))
            _multiply_quad(
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
def bound_scores(test: Addresses, train: Addresses, row: int, work: Work, n: int) -> None:
    """Fills in `uppers` and `bounds` of n candidates of test row `row`: from exact products of loss
    gradients, and from sketches of activations, if there are any.

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
                _multiply_quad(
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
                candidate = work.quad[q]
                j = (work.codes[candidate] >> 1) * test.checkpoints + t
                product = work.products[t, candidate]
                towards = -product if work.codes[candidate] & 1 else product
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
                work.uppers[t, candidate] = max(towards * highest, towards * lowest) * length
                work.left[q] += work.uppers[t, candidate]
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
    """Returns a pair's bound as `Pool.bounds` holds it, `norms` being N N'."""
    return (upper + SLACK * norms) / divisor


@inlined(forceinline=True)
def _normalized(score: float, test_divisor: float, train_divisor: float) -> float:
    divisor = train_divisor * test_divisor
    return score / divisor if divisor > 0 else 0.0


@compiled()
def canonical_scores(
    test: Factors, train: Factors, rates: np.ndarray, tests: np.ndarray, trains: np.ndarray
) -> np.ndarray:
    """Returns `influence.canonical_scores` of P pairs, the same bits: [P] float64."""
    scores = np.empty(len(tests))
    test_addresses, train_addresses = addresses_of(test), addresses_of(train)
    held = allocate_work(test_addresses.checkpoints)
    work = borrowed(held)
    work.quad[:] = 0
    for p in range(len(tests)):
        work.codes[0] = 2 * trains[p]
        _score_quad(test_addresses, train_addresses, tests[p], work, rates.ctypes.data)
        scores[p] = _normalized(work.totals[0], test.divisors[tests[p]], train.divisors[trains[p]])
    hold_work(held)
    return scores


@inlined(forceinline=True)
def _add_part(test: Addresses, train: Addresses, row: int, work: Work, t: int, rate: float) -> None:
    """Adds checkpoint t to the `totals` of the candidates `quad`, and leaves it in `dots`."""
    _multiply_quad(
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
def score_candidates(pool: Pool, i: int, row: int, scorer: Scorer, n: int) -> None:
    """Scores n candidates of the pool's row i (test row `row`) and keeps the best."""
    test, train, work = scorer.test, scorer.train, scorer.work
    if test.units >= _MANY_UNITS:
        multiply_loss_grads(test, train, row, work, n)
        _score_by_bounds(pool, i, row, scorer, n)
        return
    for first in range(0, n, QUAD):
        count = min(QUAD, n - first)
        for q in range(QUAD):
            work.quad[q] = min(first + q, n - 1)
        _score_quad(test, train, row, work, scorer.rates.ctypes.data)
        _keep_scored(pool, i, row, scorer, count)


@inlined()
def _score_by_bounds(pool: Pool, i: int, row: int, scorer: Scorer, n: int) -> None:
    """The work of `score_candidates` where scores are expensive.

    Candidates come by their bounds, the highest first, and bounds give way to exact parts,
    checkpoint by checkpoint, until the bound cannot reach the threshold.
    """
    test, train, work, rates = scorer.test, scorer.train, scorer.work, scorer.rates
    norm, divisor = load_float64(test.norm, row), load_float64(test.divisors, row)
    bound_scores(test, train, row, work, n)
    for slot in range(n):
        work.bounded[slot] = slot
    for slot in range(n // 2 - 1, -1, -1):
        sift(work.bounds, work.bounded, slot, n)
    waiting = n
    while True:
        limits = (threshold_of(pool, 0, i, divisor), threshold_of(pool, 1, i, divisor))
        count = 0
        while count < QUAD and waiting > 0 and work.bounds[0] >= min(limits[0], limits[1]):
            candidate, bound = np.int64(work.bounded[0]), work.bounds[0]
            waiting -= 1
            work.bounds[0], work.bounded[0] = work.bounds[waiting], work.bounded[waiting]
            sift(work.bounds, work.bounded, np.int64(0), waiting)
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
            _keep_scored(pool, i, row, scorer, count)


@inlined(forceinline=True)
def _score_quad(test: Addresses, train: Addresses, row: int, work: Work, rates: int) -> None:
    """Fills in `totals` of the candidates `quad`."""
    loss_grads = _quad_addresses(
        test.loss_grads, row, train.loss_grads, work, 0, test.checkpoints, test.outputs
    )
    activations = _quad_addresses(
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
def _keep_scored(pool: Pool, i: int, row: int, scorer: Scorer, count: int) -> None:
    """Keeps the best of the first `count` candidates of `quad`, whose `totals` are complete."""
    work, divisor = scorer.work, load_float64(scorer.test.divisors, row)
    pool.tally[i, 2] += count
    for q in range(count):
        code = work.codes[work.quad[q]]
        sign, j = code & 1, code >> 1
        total = -work.totals[q] if sign else work.totals[q]
        score = _normalized(total, divisor, load_float64(scorer.train.divisors, j))
        if score > 0 and score >= pool.floors[sign, i]:
            pool.filled[sign, i] = keep_best(
                pool.scores[sign, i],
                pool.rows[sign, i],
                pool.filled[sign, i],
                score,
                j,
                scorer.ranks,
            )
