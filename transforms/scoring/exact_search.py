"""The search for the k strongest proponents and opponents: pairs that cannot be among them are
skipped by proven bounds.

Training examples that are alike, strong in the same outputs and about as strong, lie together in
groups. Sieves, each over what the one before let through, then the canonical score (`scoring`):

1. Whole groups: by norms, `|score| ≤ Σ_t n_t n'_t` (Cauchy–Schwarz), and by the highest and the
   lowest that each entry of the loss gradients has in a block.
2. Loss gradients multiplied in float32. Only the large entries of the test example's are
   multiplied, the rest is bounded by its norm: with many classes a loss gradient has its mass on
   few. Activations are bounded by their norms; or, where a few directions hold most of them, by
   sketches: their parts in these directions, and the length of the rest.
3. Where activations are long, loss gradients exactly, then activations of one checkpoint after the
   other, until what is left cannot reach the threshold.

A threshold is the k-th best score that is known so far. To begin with, a few test examples lead:
their pilot is the training examples strongest in the outputs that they are strongest in, and what
is best for them is the pilot of the test examples like them. Later chunks of training examples
begin with the thresholds of the earlier ones. Where a sample shows that the sieves would let too
many through, a test example's products are all made in float32, and those within a proven margin of
its k-th are scored.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from transforms.core.features import Features
from transforms.core.topk import Ranking, TopK, concatenate, cut
from transforms.scoring.error_bounds import bound_margin, product_margin, sketch_error
from transforms.scoring.influence import Scoring, self_influence
from transforms.scoring.kernels import heaps, layout, pairs, prepare, products, sieves
from transforms.scoring.kernels.layout import (
    NO_COLUMN,
    STRONGEST,
    SUPERGROUP_SIZE,
    Bounding,
    ColumnGroups,
    Factors,
    Pool,
    Sides,
    Terms,
)
from transforms.scoring.kernels.register_tiles import SKETCH, SKETCH_COLUMNS
from transforms.scoring.kernels.simd import GROUP_SIZE
from transforms.scoring.thresholds import nth

# Test examples that go through the blocks together, at most and, so that threads end together, at
# least: enough that blocks are read from memory seldom, few enough that a processor's cache holds
# their vectors.
_GROUP_TESTS, _FEWEST_TESTS = 512, 64

# What the heaps and lists of the groups in work may take; for a large k they have fewer test
# examples.
_POOL_BYTES = 96 << 20

# Test examples whose products are made together: eight parts of three groups of tiles.
_BLOCK_TESTS = 1152

# Norm of the entries of a test example's loss gradients that are left out of the second sieve, over
# N.
_TOLERANCE = 0.01

# Costs of one term of the second sieve, and of one of an exact score, over that of one in a block
# of products.
_TERM_COST, _EXACT_COST = 2.0, 8.0

# Rows whose activations are sampled for the directions of sketches, iterations to find them, and
# the part of the squared length that may be outside of them for sketches to be of use.
_SKETCH_SAMPLE, _SKETCH_ITERATIONS, _SKETCH_REST = 1024, 2, 0.4

# Rows of the sample that are multiplied at once, if that is a small product. OpenBLAS shares out
# products of more terms than the second among threads, which then wait for others, busily, and take
# tens of milliseconds from ours.
_SMALL, _SHARED_PRODUCT = 64, 1 << 18

# Training examples that are kept as strongest of each output and sign, at most: so many over all
# outputs, but not fewer than the second. With fewer than k a pilot proves little; to keep them
# takes the longer, the more there are.
_STRONGEST, _FEWEST_STRONGEST = 4096, 64

# Test examples that follow one that leads.
_FOLLOWERS = 15

# Costs over that of products: above the first, a test example is not even tried on the first page,
# which sharpens its threshold; above the last, one that has a leader gets a pilot of its own.
_HOPELESS, _WEAK = 3.0, 0.5

# Test examples that are looked at first: where all of them are hopeless, the others are not tried.
# And how many times as many there have to be for that.
_TRIED, _TRIED_OF = 64, 16

# What `Search.counts` tells of pairs: those with a zero gradient, skipped in whole groups, sieved
# by loss gradients, and multiplied whole, which are all; then how many of them were examined one by
# one, and scored.
COUNTS = ("zero", "blocks", "loss_gradients", "products", "examined", "scored")

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

    def share(self, n: int, work: Callable[[int, int], _Result]) -> list[_Result]:
        """Does work that is given as ranges of `n` things; its results in order."""
        step = max(1, -(-n // (4 * self.count)))
        return list(self.map(lambda first: work(first, min(first + step, n)), range(0, n, step)))


@functools.cache
def _threads() -> _Threads:
    return _Threads()


def _factors(
    features: Features, scoring: Scoring, divides: bool, directions: np.ndarray
) -> Factors:
    """`directions` are of `_directions`."""
    loss_grads = np.ascontiguousarray(features.loss_grads, np.float32)
    activations = np.ascontiguousarray(features.activations, np.float32)
    lengths = np.sqrt(np.asarray(scoring.learning_rates)) * features.activation_norms
    negatives = np.zeros(lengths.shape)
    _, units, sketched = directions.shape
    sketches, rests = (
        np.empty((*lengths.shape, SKETCH if sketched else 0), np.float32),
        np.zeros(lengths.shape),
    )
    norm = np.sqrt(self_influence(features, scoring.learning_rates))
    error = sketch_error(SKETCH, units)
    _threads().share(
        len(features),
        lambda first, last: prepare.sketch_activations(
            activations,
            features.activation_norms,
            directions,
            error,
            first,
            last,
            negatives,
            sketches,
            rests,
        ),
    )
    divisors = norm if divides else np.ones(len(norm))
    return Factors(
        loss_grads,
        activations,
        lengths,
        negatives,
        sketches,
        rests,
        lengths * features.loss_grad_norms,
        norm,
        divisors,
    )


def score_pairs(
    test: Features, train: Features, tests: np.ndarray, trains: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """`scoring.canonical_scores` of P pairs, rows `tests` and `trains` [P], the same bits, compiled
    and on all cores: [P] float64.
    """
    nothing = np.empty((*test.activations.shape[1:], 0), np.float32)
    sides = (
        _factors(test, scoring, scoring.divides_test, nothing),
        _factors(train, scoring, scoring.divides_train, nothing),
    )
    rates = np.asarray(scoring.learning_rates, np.float64)
    scores = np.empty(len(tests))

    def work(first: int, last: int) -> None:
        scores[first:last] = pairs.canonical_scores(
            *sides, rates, tests[first:last], trains[first:last]
        )

    _threads().share(len(tests), work)
    return scores


def _directions(train: Features, none: bool) -> np.ndarray:
    """Orthonormal directions in which the activations of strong training examples lie: [T, D,
    SKETCH_COLUMNS] float32, filled up by zeros.

    Found by subspace iteration on a sample; any are valid, better ones leave less outside. There
    are none, [T, D, 0], where they would tell little, or `none` are wanted.
    """
    _, checkpoints, units = train.activations.shape
    nothing = np.empty((checkpoints, units, 0), np.float32)
    if none or units <= 2 * SKETCH:
        return nothing
    size = min(len(train), _SKETCH_SAMPLE)
    step = _SMALL if size >= _SMALL and units * SKETCH * _SMALL < _SHARED_PRODUCT else size
    rows = np.linspace(0, len(train) - 1, size // step * step).astype(np.int64).reshape(-1, step)
    found = np.zeros((checkpoints, units, SKETCH_COLUMNS), np.float32)
    outside = []
    for t in range(checkpoints):
        lengths = train.activation_norms[rows, t]
        sample = train.activations[rows, t] * _inverse(lengths)[..., None]
        strength = train.loss_grad_norms[rows, t] * lengths
        weighted = sample * (strength / max(strength.max(), 1e-300))[..., None]
        basis = np.random.default_rng(0).standard_normal((units, SKETCH))
        for _ in range(_SKETCH_ITERATIONS):
            basis = np.linalg.qr((weighted.swapaxes(1, 2) @ (weighted @ basis)).sum(0))[0]
        found[t, :, :SKETCH] = basis
        outside.append(np.median(1 - np.square(sample @ basis).sum(-1)))
    return found if np.mean(outside) < _SKETCH_REST else nothing


class _Chunk:
    """Training examples as the search wants them."""

    def __init__(self, train: Features, scoring: Scoring, directions: np.ndarray) -> None:
        self.features = train
        self.factors = _factors(train, scoring, scoring.divides_train, directions)
        self._normalized = scoring.divides_train
        norm = self.factors.norm
        alive = np.flatnonzero(norm > 0)
        outputs = np.empty((len(norm), 2), np.int32)
        _threads().share(
            len(norm),
            lambda first, last: prepare.strongest_outputs_of(
                self.factors.loss_grads, self.factors.lengths, first, last, outputs
            ),
        )
        # Groups of examples that are alike, the strongest first; normalised, all are equally
        # strong.
        strength = np.zeros(len(alive)) if self._normalized else np.frexp(norm[alive])[1] // 2
        order = np.lexsort((outputs[alive, 1], outputs[alive, 0], -strength))
        self.columns = alive[order].astype(np.int32)
        self.places = np.empty(len(norm), np.int32)
        self.places[self.columns] = np.arange(len(self.columns), dtype=np.int32)
        self._scales = _inverse(norm) if self._normalized else np.ones(len(norm))
        self.ranks = np.empty(len(train), np.int32)
        self.ranks[np.argsort(train.example_ids, kind="stable")] = np.arange(
            len(train), dtype=np.int32
        )

    def __len__(self) -> int:
        return len(self.columns)

    @functools.cached_property
    def groups(self) -> ColumnGroups:
        """The loss gradients in column groups."""
        factors = self.factors
        _, checkpoints, outputs = factors.loss_grads.shape
        count = -(-len(self.columns) // GROUP_SIZE)
        supergroups = -(-count // SUPERGROUP_SIZE)
        sketched = factors.sketches.shape[2]
        starts = np.arange(0, len(self.columns), GROUP_SIZE)
        groups = ColumnGroups(
            self.columns,
            np.empty((count, checkpoints, outputs, GROUP_SIZE), np.float32),
            np.empty((count, checkpoints, GROUP_SIZE), np.float32),
            np.ones(count)
            if self._normalized
            else np.maximum.reduceat(factors.norm[self.columns], starts),
            np.empty((count, checkpoints), np.float32),
            np.empty((count, checkpoints, sketched, GROUP_SIZE), np.float32),
            np.empty((count, checkpoints, GROUP_SIZE), np.float32),
            *np.zeros((2, supergroups, checkpoints, outputs, SUPERGROUP_SIZE), np.float32),
            *np.zeros((2, supergroups, checkpoints, SUPERGROUP_SIZE), np.float32),
        )
        self._cut(
            groups.loss_grads,
            factors.loss_grads,
            factors.lengths * self._scales[:, None],
            groups.scales,
        )
        if sketched:
            self._cut(
                groups.sketches, factors.sketches, np.ones_like(factors.lengths), np.ones(count)
            )
        _threads().share(
            count,
            lambda first, last: prepare.outline_groups(groups, first, last, factors, self._scales),
        )
        return groups

    @functools.cached_property
    def activations(self) -> np.ndarray:
        """The activations in column groups, of length 1: [G, T, D, GROUP_SIZE] float32."""
        activations = self.factors.activations
        _, checkpoints, units = activations.shape
        found = np.empty((len(self.groups.scales), checkpoints, units, GROUP_SIZE), np.float32)
        self._cut(found, activations, _inverse(self.features.activation_norms), np.ones(len(found)))
        return found

    def _cut(
        self, groups: np.ndarray, vectors: np.ndarray, factors: np.ndarray, units: np.ndarray
    ) -> None:
        _threads().share(
            len(groups),
            lambda first, last: prepare.fill_groups(
                groups, first, last, vectors, factors, units, self.columns
            ),
        )

    def strongest(self, most: int) -> np.ndarray:
        """See `prepare.strongest_columns`."""
        groups = self.groups
        outputs = groups.loss_grads.shape[2]
        found = np.empty((2, outputs, most), np.int32)
        _threads().share(
            outputs, lambda first, last: prepare.strongest_columns(groups, first, last, found)
        )
        return found


def _inverse(lengths: np.ndarray) -> np.ndarray:
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def scaled_rows(test: Factors, features: Features, rows: np.ndarray) -> list[np.ndarray]:
    """Loss gradients over N and activations of length 1, as `products.search_products` wants them,
    of these rows.
    """
    found = []
    for vectors, factors in (
        (test.loss_grads, test.lengths * _inverse(test.norm)[:, None]),
        (test.activations, _inverse(features.activation_norms)),
    ):
        scaled = np.empty((len(rows), *vectors.shape[1:]), np.float32)
        scale = functools.partial(
            prepare.scale_vectors, scaled, vectors=vectors, factors=factors, rows=rows
        )
        _threads().share(len(rows), scale)
        found.append(scaled)
    return found


def find_terms(factors: Factors, tolerance: float) -> Terms:
    """The terms of test examples; the entries left out have a norm of at most `tolerance` N
    together.
    """
    norms = factors.norms * _inverse(factors.norm)[:, None]
    up = [
        (array * (1 + 1e-6)).astype(np.float32)
        for array in (norms, factors.negatives, factors.rests)
    ]
    parts = _threads().share(
        len(norms),
        lambda first, last: prepare.find_terms(
            factors.loss_grads, factors.lengths, factors.norm, tolerance, first, last
        ),
    )
    starts, outputs, values, rest = zip(*parts, strict=True)
    before = np.cumsum([0, *(len(part) for part in outputs[:-1])])
    places = np.concatenate([part + start for part, start in zip(starts, before, strict=True)])
    return Terms(places, np.concatenate(outputs), np.concatenate(values), np.concatenate(rest), *up)


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
        """The outputs that they are strongest in; see `prepare.strongest_outputs`."""
        found = np.empty((len(self.factors.norm), layout.STRONGEST), np.int64)
        # Looked up here: threads that made them would wait for each other.
        terms, outputs = self.terms, self.factors.loss_grads.shape[2]
        _threads().share(
            len(found),
            lambda first, last: prepare.strongest_outputs(terms, outputs, first, last, found),
        )
        return found

    @functools.cached_property
    def order(self) -> np.ndarray:
        """All rows, those next to each other that are strong in the same outputs: they look at the
        same training examples, in the cache.
        """
        return np.lexsort(self.outputs.T)


class _Sieve:
    """What the second sieve and its pilots need of a chunk."""

    def __init__(self, chunk: _Chunk, k: int, pilots: bool) -> None:
        self.groups = chunk.groups
        outputs = chunk.factors.loss_grads.shape[2]
        most = min(k, max(_FEWEST_STRONGEST, _STRONGEST // outputs))
        self.strongest = chunk.strongest(most) if pilots else np.empty((2, outputs, 0), np.int32)


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


def _by_row(rows: np.ndarray, n: int) -> np.ndarray:
    """What sorts `rows` of 0 to n, those that are equal being next to each other already; their
    order is kept.
    """
    counts = np.bincount(rows, minlength=n)
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    # Where each run goes, less where it is.
    shift = (np.cumsum(counts) - counts)[rows[first]] - first
    order = np.empty(len(rows), np.int64)
    places = np.arange(len(rows))
    order[places + np.repeat(shift, np.diff(first, append=len(rows)))] = places
    return order


def _tallied(pool: Pool) -> dict[str, int]:
    return {"examined": int(pool.tally[:, 1].sum()), "scored": int(pool.tally[:, 2].sum())}


def _found(pool: Pool, rows: np.ndarray, ranks: np.ndarray) -> list[_Found]:
    """What a pool holds for these test rows, by sign."""
    found = []
    for sign, direction in enumerate((1, -1)):
        places, scores, trains = heaps.take_best(pool, ranks, sign)
        found.append(_Found(rows[places].astype(np.int32), direction * scores, trains))
    return found


class Search:
    """The k strongest proponents and opponents of some test examples, among training examples that
    come in chunks.

    Exact: `result` is what sorting the canonical scores of all pairs would give, for any chunks in
    any order.

    Attributes:
        counts: what became of the pairs; see `COUNTS`.
        floors: [2, n] the k-th best score known so far, opponents' negated, or 0.
    """

    def __init__(
        self,
        test: Features,
        scoring: Scoring,
        dense: bool = False,
        floors: np.ndarray | None = None,
    ) -> None:
        """`dense` makes every product, whatever a sample says.

        `floors` [2, n] are scores, opponents' negated, below which nothing is looked for: that k
        training examples are known to reach, as another search has found them among training
        examples of the same set, or are thought to (`thresholds`).
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
        """Searches a chunk of training examples; yields the number of pairs done, from time to
        time, which adds up to all of them.
        """
        if self._tests is None:
            # Only now, because the training examples say in what directions activations are worth a
            # sketch.
            self._tests = _Tests(self._test, self._scoring, _directions(train, self._dense))
        chunk = _Chunk(train, self._scoring, self._tests.directions)
        if not len(chunk) or not self._alive.any():
            self.counts["zero"] += len(self._test) * len(train)
            yield len(self._test) * len(train)
            return
        self.counts["zero"] += len(self._test) * len(train) - int(self._alive.sum()) * len(chunk)
        found: list[list[_Found]] = []
        dense = self._alive.copy()
        sieve = (
            None
            if self._dense
            else _Sieve(chunk, self._scoring.k, pilots=not (self.floors[:, self._alive] > 0).all())
        )
        if sieve and self._pays(chunk, sieve):
            rows = self._tests.order
            for most in (1.0, np.inf):
                groups = self._groups(rows, chunk, _GROUP_TESTS, _threads().count)
                for part in _threads().map(
                    functools.partial(self._search_blocks, chunk=chunk, sieve=sieve, most=most),
                    groups,
                ):
                    found.append(self._account(part))
                    dense[part.rows] = part.left
                    yield (len(part.rows) - int(part.left.sum())) * len(train)
                rows = rows[dense[rows]]
                if len(rows) >= min(_BLOCK_TESTS, len(self._test)) / 4:
                    break
                # Else so few are left that it is not worth cutting all activations for them.
        for rows in self._groups(np.flatnonzero(dense), chunk, _BLOCK_TESTS, 1):
            yield from self._search_products(rows, chunk, found)
            yield len(rows) * (len(train) - len(chunk))
        self._take(found, chunk)

    def _account(self, part: _Part) -> list[_Found]:
        self._count(part.counts)
        return part.found

    def _count(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            self.counts[name] += count

    def _groups(self, rows: np.ndarray, chunk: _Chunk, most: int, at_once: int) -> list[np.ndarray]:
        """Cuts test rows into groups, `at_once` of which are in work; where it is more than one,
        the last are smaller, to end together.
        """
        most = int(
            np.clip(
                _POOL_BYTES
                // at_once
                // (8 * (5 * self._scoring.k + 3 * (self._room(chunk) + GROUP_SIZE))),
                16,
                most,
            )
        )
        groups = []
        while len(rows):
            size = (
                most
                if at_once == 1
                else int(np.clip(len(rows) // (2 * at_once), min(_FEWEST_TESTS, most), most))
            )
            groups.append(rows[:size])
            rows = rows[size:]
        return groups

    def _room(self, chunk: _Chunk) -> int:
        """How many candidates of a test example are listed before they are sifted."""
        return min(4 * self._scoring.k + 128, len(chunk) + 1)

    def _pool(self, rows: np.ndarray, chunk: _Chunk, pilot: int = 0) -> Pool:
        """An empty pool for some test rows, `pilot` training rows of which may be searched before
        others.
        """
        n, k, most = len(rows), self._scoring.k, self._room(chunk) + GROUP_SIZE
        return Pool(
            np.zeros((2, n, k)),
            np.zeros((2, n, k), np.int32),
            np.zeros((2, n), np.int64),
            # Of fewer training examples than k, any can be among the k best of all.
            self.floors[:, rows].copy(),
            np.empty((2, n, most)),
            np.empty((2, n, most), np.int32),
            np.zeros((2, n), np.int64),
            np.full((2, n, pilot), NO_COLUMN, np.int32),
            np.zeros((n, 3), np.int64),
        )

    def _pays(self, chunk: _Chunk, sieve: _Sieve) -> bool:
        """Whether the sieves are worth trying: of some test examples from everywhere, one at least
        is not hopeless.
        """
        assert self._tests is not None
        alive = np.flatnonzero(self._alive)
        if len(alive) < _TRIED * _TRIED_OF:
            return True
        rows = alive[:: len(alive) // _TRIED]
        few, everyone = (
            _Tests(self._test.take(rows), self._scoring, self._tests.directions),
            np.arange(len(rows)),
        )
        pool = self._pool(rows, chunk, sieve.strongest.shape[2] * STRONGEST)
        unknown = np.any(self.floors[:, rows] <= 0, axis=0)
        prepare.choose_by_outputs(pool, everyone, unknown, few.outputs, sieve.strongest)
        sides = Sides(few.factors, everyone, chunk.factors, self._rates, chunk.ranks)
        sieves.search_pilots(pool, sides, chunk.columns, unknown)
        self._count(_tallied(pool))
        return bool(
            (
                self._costs(pool, few, everyone, chunk, np.ones(len(rows), bool), 0) <= _HOPELESS
            ).any()
        )

    def _costs(
        self,
        pool: Pool,
        tests: _Tests,
        rows: np.ndarray,
        chunk: _Chunk,
        chosen: np.ndarray,
        first: int,
    ) -> np.ndarray:
        """The estimated cost of the pool's rows, from page `first` on, over that of their products:
        [n] float64.

        `rows` [n] are their rows of `tests`; the cost is infinite for those not `chosen` [n].
        """
        test, last = tests.factors, len(chunk.groups.highest)
        bounded, passing = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        sides = Sides(test, rows, chunk.factors, self._rates, chunk.ranks)
        bounding = Bounding(tests.terms, chunk.groups, self._bound_margin)
        sieves.count_passing(pool, sides, bounding, chosen, first, last, bounded, passing)
        size = len(chunk) - first * SUPERGROUP_SIZE * GROUP_SIZE
        _, checkpoints, outputs = test.loss_grads.shape
        whole = checkpoints * (outputs + test.activations.shape[2])
        terms = (
            tests.terms.starts[rows, -1]
            - tests.terms.starts[rows, 0]
            + checkpoints * (3 + test.sketches.shape[2])
        )
        return np.where(
            chosen, (bounded * terms * _TERM_COST / whole + passing * _EXACT_COST) / size, np.inf
        )

    def _search_blocks(self, rows: np.ndarray, chunk: _Chunk, sieve: _Sieve, most: float) -> _Part:
        """Searches test rows next to each other in order, but leaves those that would cost more
        than `most` times their products.

        Where no threshold is known from before, some of them lead: what is best for them gives the
        others their thresholds.
        """
        tests, groups = self._tests, sieve.groups
        assert tests is not None
        sides = Sides(tests.factors, rows, chunk.factors, self._rates, chunk.ranks)
        bounding = Bounding(tests.terms, groups, self._bound_margin)
        pool = self._pool(
            rows, chunk, max(sieve.strongest.shape[2] * STRONGEST, 2 * self._scoring.k)
        )
        first, last = 1, len(groups.highest)
        alive = self._alive[rows]
        known = alive & (self.floors[:, rows] > 0).all(axis=0)
        leads = np.zeros(len(rows), bool)
        leads[np.flatnonzero(alive & ~known)[:: _FOLLOWERS + 1]] = True

        def cost(chosen: np.ndarray, first: int) -> np.ndarray:
            return self._costs(pool, tests, rows, chunk, chosen, first)

        def search(chosen: np.ndarray, first: int, last: int) -> None:
            sieves.search_groups(pool, sides, bounding, chosen, first, last)

        prepare.choose_by_outputs(pool, rows, leads, tests.outputs, sieve.strongest)
        sieves.search_pilots(pool, sides, chunk.columns, leads)
        chosen = leads & (cost(leads, 0) <= most * _HOPELESS)
        search(chosen, 0, first)
        if first < last:
            chosen &= cost(chosen, first) <= most
            search(chosen, first, last)
        followers = alive & ~leads
        if 2 * chosen.sum() >= leads.sum():
            led = prepare.choose_by_leaders(
                pool, rows, followers & ~known, np.flatnonzero(chosen), tests.outputs, chunk.places
            )
            sieves.search_pilots(pool, sides, chunk.columns, led)
            # Where leaders tell too little, outputs may tell more.
            costs = cost(followers & (known | led), 0)
            weak = followers & ~known & ~(costs <= _WEAK)
            sieves.forget_unchosen(pool, ~weak)
            prepare.choose_by_outputs(pool, rows, weak, tests.outputs, sieve.strongest)
            sieves.search_pilots(pool, sides, chunk.columns, weak)
            followers &= np.where(weak, cost(weak, 0), costs) <= most
            search(followers, 0, last)
            chosen |= followers
        sieves.forget_unchosen(pool, chosen)
        self.floors[:, rows] = pool.floors
        skipped = int(pool.tally[chosen, 0].sum())
        counts = {
            "blocks": skipped,
            "loss_gradients": int(chosen.sum()) * len(chunk) - skipped,
            **_tallied(pool),
        }
        return _Part(rows, _found(pool, rows, chunk.ranks), alive & ~chosen, counts)

    def _search_products(
        self, rows: np.ndarray, chunk: _Chunk, found: list[list[_Found]]
    ) -> Iterator[int]:
        assert self._tests is not None
        pool, test, groups = self._pool(rows, chunk), self._tests.factors, chunk.groups
        sides = Sides(test, rows, chunk.factors, self._rates, chunk.ranks)
        loss_grads, activations = scaled_rows(test, self._test, rows)
        operands = products.Operands(
            loss_grads,
            activations,
            groups,
            chunk.activations,
            self._margin,
            2 * self._margin * float(groups.scales.max()),
        )
        for start in range(0, len(groups.scales), SUPERGROUP_SIZE):
            stop = min(start + SUPERGROUP_SIZE, len(groups.scales))

            def multiply(first: int, last: int, start: int = start, stop: int = stop) -> None:
                products.search_products(pool, first, last, start, stop, sides, operands)

            _threads().share(len(rows), multiply)
            pairs = len(rows) * (min(stop * GROUP_SIZE, len(chunk)) - start * GROUP_SIZE)
            self.counts["products"] += pairs
            yield pairs
        _threads().share(
            len(rows),
            lambda first, last: products.settle_rows(pool, first, last, sides, operands.width),
        )
        found.append(
            self._account(
                _Part(
                    rows, _found(pool, rows, chunk.ranks), np.zeros(len(rows), bool), _tallied(pool)
                )
            )
        )

    def _take(self, found: Sequence[list[_Found]], chunk: _Chunk) -> None:
        """Merges what was found in a chunk with what was known before, and raises the floors."""

        def merge(sign: int) -> Ranking:
            rows, scores, trains = (
                np.concatenate(arrays)
                for arrays in zip(*(part[sign] for part in found), strict=True)
            )
            order = _by_row(rows, len(self._test))
            trains = trains[order]
            best = Ranking(
                rows[order],
                scores[order],
                chunk.features.example_ids[trains],
                chunk.features.labels[trains],
            )
            before = self._best[sign]
            if before is not None:
                best = cut(concatenate([before, best]), self._scoring.k)
            self.floors[sign] = np.maximum(
                self.floors[sign], nth(best, len(self._test), self._scoring.k)
            )
            return best

        self._best = list(_threads().map(merge, range(2)))

    def result(self) -> TopK:
        """The top k of what was scanned; rows are those of the test examples."""
        empty = Ranking(
            np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), self._test.labels[:0]
        )
        return TopK(*(best if best is not None else empty for best in self._best))
