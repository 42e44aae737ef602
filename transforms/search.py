"""The search for the k strongest proponents and opponents: pairs that cannot be among them are skipped by proven bounds.

Sieves, each over what the one before let through, then the canonical score (`scoring`):

1. Cauchy–Schwarz by norms, `|score| ≤ Σ_t n_t n'_t`, for whole strips of training examples, the strongest first.
2. Loss gradients multiplied in float32, activations bounded by their norms. Only the large entries of the test example's are multiplied,
   the rest is bounded by its norm: with many classes a loss gradient has its mass on few.
3. Activations bounded by sketches: their parts in a few directions that hold most of them, and the length of the rest.
4. Loss gradients exactly, then activations of one checkpoint after the other, until what is left cannot reach the threshold.

A threshold is the k-th best score that is known so far. To begin with, a few test examples lead: their pilot is the training examples
strongest in the outputs that they are strongest in, and what is best for them is the pilot of the test examples like them. Later chunks of
training examples begin with the thresholds of the earlier ones. Where a sample shows that the sieves would let too many through, a test
example's products are all made, by TensorFlow in float32 blocks, and those within a proven margin of its k-th are scored.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from transforms import kernels
from transforms.kernels import BLOCK, LANES, NO_ROW, STRONGEST, WIDTH, Factors, Pool, Strips, Terms
from transforms.records import Features
from transforms.scoring import Scoring, bound_margin, product_margin, self_influence
from transforms.topk import Ranking, TopK, concatenate, cut

# Test examples that go through the strips together: enough that strips are read from memory seldom, few enough for threads to share.
_GROUP_TESTS = 512

# What the heaps and lists of the groups in work may take; for a large k they have fewer test examples.
_POOL_BYTES = 96 << 20

# One multiplication makes a block of this many test × train scores.
_BLOCK_TESTS, _BLOCK_TRAINS = 1024, 4096

# Norm of the entries of a test example's loss gradients that are left out of the second sieve, over N.
_TOLERANCE = 0.01

# Costs of one term of the second sieve, and of one of an exact score, over that of one in a block of products.
_TERM_COST, _EXACT_COST = 2.0, 8.0

# Rows whose activations are sampled for the directions of sketches, iterations to find them, and the part of the squared length that may
# be outside of them for sketches to be of use.
_SKETCH_SAMPLE, _SKETCH_ITERATIONS, _SKETCH_REST = 1024, 2, 0.4

# Test examples that follow one that leads, and strips of which costs are estimated.
_FOLLOWERS, _SAMPLE_STRIPS = 15, 8

# Costs over that of products: above the first, a test example is not even tried on the first strips, which sharpen its threshold; above
# the last, one that has a leader gets a pilot of its own.
_HOPELESS, _FIRST_STRIPS, _WEAK = 3.0, 16, 0.5

# What `Search.counts` tells of pairs: those with a zero gradient, skipped by norms, sieved by loss gradients, and multiplied whole, which
# are all; then how many of them were examined one by one, and scored.
COUNTS = ("zero", "norms", "loss_gradients", "products", "examined", "scored")

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Threads:
    """Compiled loops on all cores; they do not hold Python's lock."""

    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0))
        self._executor = concurrent.futures.ThreadPoolExecutor(self.count, "search")

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results of some pieces of work, in order."""
        return self._executor.map(work, items)

    def share(self, n: int, work: Callable[[int, int], Any]) -> None:
        """Does work that is given as ranges of `n` things."""
        step = max(1, -(-n // (4 * self.count)))
        for _ in self.map(lambda first: work(first, min(first + step, n)), range(0, n, step)):
            pass


@functools.cache
def _threads() -> _Threads:
    return _Threads()


def _factors(features: Features, scoring: Scoring, divides: bool, directions: np.ndarray) -> Factors:
    """`directions` are of `_directions`."""
    loss_grads = np.ascontiguousarray(features.loss_grads, np.float32)
    activations = np.ascontiguousarray(features.activations, np.float32)
    lengths = np.sqrt(np.asarray(scoring.learning_rates)) * features.activation_norms
    negatives = np.zeros(lengths.shape)
    sketches, rests = np.zeros((*lengths.shape, directions.shape[1]), np.float32), np.zeros(lengths.shape)
    norm = np.sqrt(self_influence(features, scoring.learning_rates))
    _threads().share(
        len(features),
        lambda first, last: kernels.look_at_activations(
            activations, features.activation_norms, directions, first, last, negatives, sketches, rests
        ),
    )
    divisors = norm if divides else np.ones(len(norm))
    return Factors(loss_grads, activations, lengths, negatives, sketches, rests, lengths * features.loss_grad_norms, norm, divisors)


def _directions(train: Features, none: bool) -> np.ndarray:
    """Orthonormal directions in which the activations of strong training examples lie: [T, R, D] float64.

    Found by subspace iteration on a sample; any are valid, better ones leave less outside. R is 0 where they would tell little, or `none`
    are wanted.
    """
    _, checkpoints, units = train.activations.shape
    nothing = np.empty((checkpoints, 0, units))
    if none or units <= 2 * LANES:
        return nothing
    rows = np.linspace(0, len(train) - 1, min(len(train), _SKETCH_SAMPLE)).astype(np.int64)
    found = np.empty((checkpoints, LANES, units))
    outside = []
    for t in range(checkpoints):
        lengths = train.activation_norms[rows, t]
        inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        sample = train.activations[rows, t] * inverse[:, None]
        strength = train.loss_grad_norms[rows, t] * lengths
        weighted = sample * (strength / max(strength.max(), 1e-300))[:, None]
        basis = np.random.default_rng(0).standard_normal((units, LANES))
        for _ in range(_SKETCH_ITERATIONS):
            basis = np.linalg.qr(weighted.T @ (weighted @ basis))[0]
        found[t] = basis.T
        outside.append(np.median(1 - np.square(sample @ basis).sum(-1)))
    return found if np.mean(outside) < _SKETCH_REST else nothing


class _Chunk:
    """Training examples as the search wants them."""

    def __init__(self, train: Features, scoring: Scoring, directions: np.ndarray) -> None:
        self.features = train
        self.factors = _factors(train, scoring, scoring.divides_train, directions)
        self._rates = scoring.learning_rates
        self._normalized = scoring.divides_train
        norm = self.factors.norm
        alive = np.flatnonzero(norm > 0)
        # Normalised, all are equally strong.
        self.columns = (alive if self._normalized else alive[np.argsort(-norm[alive], kind="stable")]).astype(np.int32)
        self._scales = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0) if self._normalized else np.ones(len(norm))
        self.ranks = np.empty(len(train), np.int32)
        self.ranks[np.argsort(train.example_ids, kind="stable")] = np.arange(len(train), dtype=np.int32)
        self._sides: list[_Side] | None = None

    def __len__(self) -> int:
        return len(self.columns)

    def strips(self) -> Strips:
        """The loss gradients in strips."""
        _, checkpoints, outputs = self.factors.loss_grads.shape
        count = -(-len(self.columns) // WIDTH)
        strips = Strips(
            self.columns,
            np.empty((count, WIDTH // BLOCK, checkpoints, outputs, BLOCK), np.float32),
            np.empty((count, checkpoints, WIDTH), np.float32),
            np.ones(count) if self._normalized else self.factors.norm[self.columns[::WIDTH]],
            np.empty((count, checkpoints)),
            np.empty((count, checkpoints), np.float32),
            np.empty((count, WIDTH // BLOCK, checkpoints, self.factors.sketches.shape[2], BLOCK), np.float32),
            np.empty((count, checkpoints, WIDTH), np.float32),
        )
        _threads().share(count, lambda first, last: kernels.cut_strips(strips, first, last, self.factors, self._scales))
        return strips

    def strongest(self, most: int) -> np.ndarray:
        """See `kernels.strongest_rows`."""
        factors = self.factors
        outputs = factors.loss_grads.shape[2]
        rows = np.empty((2, outputs, most), np.int32)
        _threads().share(
            outputs,
            lambda first, last: kernels.strongest_rows(factors.loss_grads, factors.lengths, self._scales, self.columns, first, last, rows),
        )
        return rows

    def sides(self) -> list[_Side]:
        """Scaled factors in blocks of columns, made once."""
        if self._sides is None:
            self._sides = []
            for start in range(0, len(self.columns), _BLOCK_TRAINS):
                members = self.columns[start : start + _BLOCK_TRAINS]
                units = self.factors.norm[members] if self._normalized else self.factors.norm[members[0]]
                unit = 1.0 if self._normalized else float(self.factors.norm[members[0]])
                self._sides.append(_side(self.features, members, self._rates, units, min(_BLOCK_TRAINS, _padded(len(members))), unit))
        return self._sides


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """Scaled factors of some rows: activations [T, n, D] of length 1, loss gradients [T, n, C] of length n_t over the row's unit."""

    rows: np.ndarray
    unit: float
    loss_grads: tf.Tensor
    activations: tf.Tensor


def _side(
    features: Features, rows: np.ndarray, learning_rates: Sequence[float], units: np.ndarray | float, size: int, unit: float = 1.0
) -> _Side:
    """Scales `rows` of `features`, divided by `units` [n]; rows of zeros fill up to `size`, so that shapes do not change."""
    rates = np.sqrt(np.asarray(learning_rates))
    lengths = features.activation_norms[rows]
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    loss_grads = np.zeros((len(rates), size, features.loss_grads.shape[2]), np.float32)
    activations = np.zeros((len(rates), size, features.activations.shape[2]), np.float32)
    for t, rate in enumerate(rates):
        for source, factor, target in (
            (features.loss_grads, rate * lengths[:, t] / units, loss_grads),
            (features.activations, inverse[:, t], activations),
        ):
            np.multiply(source[rows, t], factor[:, None], out=target[t, : len(rows)], dtype=np.float64, casting="same_kind")
    # On the CPU by name: a GPU may multiply in TensorFloat-32, for which the margin is not proven.
    with tf.device("/CPU:0"):
        return _Side(rows, unit, tf.constant(loss_grads), tf.constant(activations))


def _padded(n: int) -> int:
    """The next of a few sizes, so that TensorFlow traces few shapes."""
    size = 64
    while size < n:
        size *= 2
    return size


def _products(test: _Side, train: _Side) -> np.ndarray:
    """`Σ_t (δ_t δ'_tᵀ) ∘ (ĥ_t ĥ'_tᵀ)` of scaled factors: [tests, trains] float32."""
    with tf.device("/CPU:0"):
        products: np.ndarray = _multiply(test.loss_grads, test.activations, train.loss_grads, train.activations).numpy()
    return products[: len(test.rows), : len(train.rows)]


@tf.function
def _multiply(test_grads: tf.Tensor, test_activations: tf.Tensor, train_grads: tf.Tensor, train_activations: tf.Tensor) -> tf.Tensor:
    total = None
    for t in range(test_grads.shape[0]):
        loss_grads = tf.matmul(test_grads[t], train_grads[t], transpose_b=True)
        # The sum over checkpoints is outside the product.
        product = loss_grads * tf.matmul(test_activations[t], train_activations[t], transpose_b=True)
        total = product if total is None else total + product
    return total


def find_terms(factors: Factors, tolerance: float) -> Terms:
    """The terms of test examples; the entries left out have a norm of at most `tolerance` N together."""
    up = [(array * (1 + 1e-6)).astype(np.float32) for array in (factors.negatives, factors.rests)]
    return Terms(*kernels.find_terms(factors.loss_grads, factors.lengths, factors.norm, tolerance), *up)


class _Tests:
    """Test examples as the search wants them."""

    def __init__(self, test: Features, scoring: Scoring, directions: np.ndarray) -> None:
        self.directions = directions
        self.factors = _factors(test, scoring, scoring.divides_test, directions)

    @functools.cached_property
    def terms(self) -> Terms:
        """The large entries of their loss gradients."""
        return find_terms(self.factors, _TOLERANCE)

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """The outputs that they are strongest in; see `kernels.strongest_outputs`."""
        return kernels.strongest_outputs(self.terms, self.factors.loss_grads.shape[2])

    @functools.cached_property
    def order(self) -> np.ndarray:
        """All rows, those next to each other that are strong in the same outputs: they look at the same training examples, in the cache."""
        return np.lexsort(self.outputs.T)


class _Sieve:
    """What the second sieve and its pilots need of a chunk."""

    def __init__(self, chunk: _Chunk, k: int, pilots: bool) -> None:
        self.strips = chunk.strips()
        outputs = chunk.factors.loss_grads.shape[2]
        self.strongest = chunk.strongest(min(k, 64)) if pilots else np.empty((2, outputs, 0), np.int32)


class _Found(NamedTuple):
    """The best of one sign of some test rows in a chunk, of each row best first.

    Attributes:
        rows: [P] int32, test rows.
        scores: [P] float64.
        trains: [P] int32, training rows of the chunk.
    """

    rows: np.ndarray
    scores: np.ndarray
    trains: np.ndarray


class _Part(NamedTuple):
    """What a search of some test rows came to.

    Attributes:
        rows: [n] the test rows.
        found: the best of them, by sign.
        left: [n] bool, which of them are left to be searched otherwise.
        counts: what became of pairs; see `COUNTS`.
    """

    rows: np.ndarray
    found: list[_Found]
    left: np.ndarray
    counts: dict[str, int]


def _tallied(pool: Pool) -> dict[str, int]:
    return {"examined": int(pool.tally[:, 1].sum()), "scored": int(pool.tally[:, 3].sum())}


def _found(pool: Pool, rows: np.ndarray, ranks: np.ndarray) -> list[_Found]:
    """What a pool holds for these test rows, by sign."""
    found = []
    for sign, direction in enumerate((1, -1)):
        places, scores, trains = kernels.take_best(pool, ranks, sign)
        found.append(_Found(rows[places].astype(np.int32), direction * scores, trains))
    return found


class Search:
    """The k strongest proponents and opponents of some test examples, among training examples that come in chunks.

    Exact: `result` is what sorting the canonical scores of all pairs would give, for any chunks in any order.

    Attributes:
        counts: what became of the pairs; see `COUNTS`.
        floors: [2, n] the k-th best score known so far, opponents' negated, or 0.
    """

    def __init__(self, test: Features, scoring: Scoring, dense: bool = False, floors: np.ndarray | None = None) -> None:
        """`dense` makes every product, whatever a sample says.

        `floors` [2, n] are scores, opponents' negated, that k training examples are known to reach, as another search has found them
        among training examples of the same set; what is below them is not looked for.
        """
        _, checkpoints, outputs = test.loss_grads.shape
        self._test = test
        self._scoring = scoring
        self._dense = dense
        self._rates = np.asarray(scoring.learning_rates, np.float64)
        self._margin = product_margin(checkpoints, outputs, test.activations.shape[2])
        self._bound_margin = bound_margin(checkpoints, outputs)
        # Whose gradient is zero has neither proponents nor opponents.
        self._alive = self_influence(test, scoring.learning_rates) > 0
        self._tests: _Tests | None = None
        self.floors = np.zeros((2, len(test))) if floors is None else floors.copy()
        self._best: list[Ranking | None] = [None, None]
        self.counts = dict.fromkeys(COUNTS, 0)

    def scan(self, train: Features) -> Iterator[int]:
        """Searches a chunk of training examples; yields the number of pairs done, from time to time, which adds up to all of them."""
        if self._tests is None:
            # Only now, because the training examples say in what directions activations are worth a sketch.
            self._tests = _Tests(self._test, self._scoring, _directions(train, self._dense))
        chunk = _Chunk(train, self._scoring, self._tests.directions)
        if not len(chunk) or not self._alive.any():
            self.counts["zero"] += len(self._test) * len(train)
            yield len(self._test) * len(train)
            return
        self.counts["zero"] += len(self._test) * len(train) - int(self._alive.sum()) * len(chunk)
        found: list[list[_Found]] = []
        dense = self._alive.copy()
        if not self._dense:
            sieve = _Sieve(chunk, self._scoring.k, pilots=not (self.floors[:, self._alive] > 0).all())
            groups = self._groups(self._tests.order, chunk, _GROUP_TESTS, _threads().count)
            for part in _threads().map(lambda rows: self._search_strips(rows, chunk, sieve, 1.0), groups):
                found.append(self._account(part))
                dense[part.rows] = part.left
                yield (len(part.rows) - int(part.left.sum())) * len(train)
            few = self._tests.order[dense[self._tests.order]]
            if len(few) < min(_BLOCK_TESTS, len(self._test)) / 4:
                # Not worth scaling all training examples for.
                for rows in self._groups(few, chunk, _GROUP_TESTS, 1):
                    part = self._search_strips(rows, chunk, sieve, np.inf)
                    found.append(self._account(part))
                    dense[rows] = part.left
                    yield len(rows) * len(train)
        for rows in self._groups(np.flatnonzero(dense), chunk, _BLOCK_TESTS, 1):
            yield from self._search_products(rows, chunk, found)
            yield len(rows) * (len(train) - len(chunk))
        self._take(found, chunk)

    def _account(self, part: _Part) -> list[_Found]:
        for name, count in part.counts.items():
            self.counts[name] += count
        return part.found

    def _groups(self, rows: np.ndarray, chunk: _Chunk, most: int, at_once: int) -> list[np.ndarray]:
        size = int(np.clip(_POOL_BYTES // at_once // (8 * (5 * self._scoring.k + 3 * (self._room(chunk) + WIDTH))), 16, most))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _room(self, chunk: _Chunk) -> int:
        """How many candidates of a test example are listed before they are sifted."""
        return min(4 * self._scoring.k + 128, len(chunk) + 1)

    def _pool(self, rows: np.ndarray, chunk: _Chunk, pilot: int = 0) -> Pool:
        """An empty pool for some test rows, `pilot` training rows of which may be searched before others."""
        n, k, most = len(rows), self._scoring.k, self._room(chunk) + WIDTH
        return Pool(
            np.zeros((2, n, k)),
            np.zeros((2, n, k), np.int32),
            np.zeros((2, n), np.int64),
            # Of fewer training examples than k, any can be among the k best of all.
            self.floors[:, rows].copy(),
            np.empty((2, n, most)),
            np.empty((2, n, most), np.int32),
            np.zeros((2, n), np.int64),
            np.full((2, n, pilot), NO_ROW, np.int32),
            np.zeros((n, 4), np.int64),
        )

    def _search_strips(self, rows: np.ndarray, chunk: _Chunk, sieve: _Sieve, most: float) -> _Part:
        """Searches test rows next to each other in order, but leaves those that would cost more than `most` times their products.

        Where no threshold is known from before, some of them lead: what is best for them gives the others their thresholds.
        """
        tests, train, strips = self._tests, chunk.factors, sieve.strips
        assert tests is not None
        test, rates, ranks = tests.factors, self._rates, chunk.ranks
        pool = self._pool(rows, chunk, max(sieve.strongest.shape[2] * STRONGEST, 2 * self._scoring.k))
        first, last = min(_FIRST_STRIPS, len(strips.units)), len(strips.units)
        alive = self._alive[rows]
        known = alive & (self.floors[:, rows] > 0).all(axis=0)
        leads = np.zeros(len(rows), bool)
        leads[np.flatnonzero(alive & ~known)[:: _FOLLOWERS + 1]] = True

        def cost(chosen: np.ndarray, first: int) -> np.ndarray:
            """The estimated cost of each row over that of its products; infinite for rows not chosen."""
            sample = np.unique(np.linspace(first, last - 1, _SAMPLE_STRIPS).astype(np.int64))
            bounded, passing = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
            kernels.count_passing(pool, test, rows, tests.terms, strips, sample, chosen, self._bound_margin, bounded, passing)
            size = np.minimum((sample + 1) * WIDTH, len(chunk)).sum() - (sample * WIDTH).sum()
            _, checkpoints, outputs = test.loss_grads.shape
            whole = checkpoints * (outputs + test.activations.shape[2])
            terms = tests.terms.starts[rows, -1] - tests.terms.starts[rows, 0] + 3 * checkpoints
            return np.where(chosen, (bounded * terms * _TERM_COST / whole + passing * _EXACT_COST) / size, np.inf)

        def search(chosen: np.ndarray, first: int, last: int) -> None:
            kernels.search_strips(pool, test, rows, tests.terms, train, strips, chosen, rates, ranks, first, last, self._bound_margin)

        kernels.choose_by_outputs(pool, rows, leads, tests.outputs, sieve.strongest)
        kernels.search_pilots(pool, test, rows, train, leads, rates, ranks)
        chosen = leads & (cost(leads, 0) <= most * _HOPELESS)
        search(chosen, 0, first)
        if first < last:
            chosen &= cost(chosen, first) <= most
            search(chosen, first, last)
        followers = alive & ~leads
        if 2 * chosen.sum() >= leads.sum():
            led = kernels.choose_by_leaders(pool, rows, followers & ~known, np.flatnonzero(chosen), tests.outputs)
            kernels.search_pilots(pool, test, rows, train, led, rates, ranks)
            # Where leaders tell too little, outputs may tell more.
            weak = followers & ~known & ~(cost(led, 0) <= _WEAK)
            kernels.give_up(pool, ~weak)
            kernels.choose_by_outputs(pool, rows, weak, tests.outputs, sieve.strongest)
            kernels.search_pilots(pool, test, rows, train, weak, rates, ranks)
            followers &= cost(followers, 0) <= most
            search(followers, 0, last)
            chosen |= followers
        kernels.give_up(pool, chosen)
        self.floors[:, rows] = pool.floors
        skipped = int(pool.tally[chosen, 0].sum())
        counts = {"norms": skipped, "loss_gradients": int(chosen.sum()) * len(chunk) - skipped, **_tallied(pool)}
        return _Part(rows, _found(pool, rows, ranks), alive & ~chosen, counts)

    def _search_products(self, rows: np.ndarray, chunk: _Chunk, found: list[list[_Found]]) -> Iterator[int]:
        assert self._tests is not None
        pool, factors = self._pool(rows, chunk), self._tests.factors
        test = _side(self._test, rows, self._scoring.learning_rates, factors.norm[rows], _padded(len(rows)))
        sides = chunk.sides()
        width = 2 * self._margin * max(side.unit for side in sides)
        for side in sides:
            products = _products(test, side)

            def sift(first: int, last: int, products: np.ndarray = products, side: _Side = side) -> None:
                kernels.search_products(
                    pool,
                    first,
                    last,
                    products,
                    factors,
                    rows,
                    chunk.factors,
                    side.rows,
                    side.unit,
                    self._margin,
                    width,
                    self._rates,
                    chunk.ranks,
                )

            _threads().share(len(rows), sift)
            self.counts["products"] += len(rows) * len(side.rows)
            yield len(rows) * len(side.rows)
        _threads().share(
            len(rows),
            lambda first, last: kernels.settle_rows(pool, first, last, factors, rows, chunk.factors, self._rates, chunk.ranks, width),
        )
        found.append(self._account(_Part(rows, _found(pool, rows, chunk.ranks), np.zeros(len(rows), bool), _tallied(pool))))

    def _take(self, found: Sequence[list[_Found]], chunk: _Chunk) -> None:
        """Merges what was found in a chunk with what was known before, and raises the floors."""
        for sign, before in enumerate(self._best):
            rows, scores, trains = (np.concatenate(arrays) for arrays in zip(*(part[sign] for part in found), strict=True))
            # A row is in one part only, so that its order there is kept.
            order = np.argsort(rows, kind="stable")
            trains = trains[order]
            best = Ranking(rows[order], scores[order], chunk.features.example_ids[trains], chunk.features.labels[trains])
            if before is not None:
                best = cut(concatenate([before, best]), self._scoring.k)
            self._best[sign] = best
            starts = best.offsets(len(self._test))
            full = np.flatnonzero(np.diff(starts) >= self._scoring.k)
            self.floors[sign, full] = np.maximum(self.floors[sign, full], np.abs(best.scores[starts[full] + self._scoring.k - 1]))

    def result(self) -> TopK:
        """The top k of what was scanned; rows are those of the test examples."""
        empty = Ranking(np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), self._test.labels[:0])
        return TopK(*(best if best is not None else empty for best in self._best))
