"""Influence of pairs: one canonical score, and a fast search for the pairs that can be among the k best by it.

The search multiplies in float32, whose bits depend on shapes, threads and processors. So it decides nothing: it keeps every pair whose
score lies within a proven error margin of its test example's k-th, and the canonical score of the two records alone decides among
those. The result is the same for every way of cutting the work.

Where so many pass the margin that this is no sieve (a large k, many activations), the block is multiplied again in float64, whose margin
is 10⁹ times smaller; and where ties leave a test example too many candidates, they are decided at once and the bound rises.

The margin. Let `n_t = √η_t ‖δ_t‖ ‖ĥ_t‖` and `N² = Σ_t n_t²` (the self-influence). Activations are scaled to length 1 and loss
gradients to `n_t` over a unit that is no smaller, so that all factors are at most 1 and nothing overflows. With `u = 2⁻²⁴`, a float32 dot
product of n terms in any order, of factors rounded once, is off by at most `γ(n + 3) ‖x‖ ‖y‖`, `γ(m) = m u / (1 − m u)` (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1). The product of the two dot products of a checkpoint and the sum over
checkpoints add to that, so a score is off by at most `γ(C + D + T + 8) Σ_t n_t n'_t ≤ γ(C + D + T + 8) N N'`. Where a factor or a
product underflows, or is flushed to zero as TensorFlow does, each term is off by at most 2⁻¹²⁵ more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from transforms.records import Features
from transforms.sums import fold_sum
from transforms.topk import Ranking, TopK, concatenate, cut

NORMALIZATIONS = ("none", "cosine", "relatif")

# One multiplication makes a block of this many test × train scores; three float32 blocks of it (48 MB) stay near the processor's caches.
BLOCK_TESTS, BLOCK_TRAINS = 1024, 4096

# What the candidates of a block of tests may take before they are sifted; for a large k the block has fewer tests.
_POOL_BYTES = 96 << 20

# Pairs that are scored canonically and cut at once.
_DECIDED_PAIRS = 1 << 19

# Numbers of the pairs that are scored canonically at once: half a megabyte of float64, which a processor's cache holds.
_PAIR_SCRATCH = 1 << 16


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What turns features into scores.

    Attributes:
        learning_rates: η of each of T checkpoints, all positive.
        k: how many proponents and opponents of each test example are wanted.
        normalize: `none`; `cosine`, divided by both examples' √self-influence; or `relatif`, by the training example's alone.
    """

    learning_rates: tuple[float, ...]
    k: int
    normalize: str = "none"

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize is {self.normalize!r}, expected one of {', '.join(NORMALIZATIONS)}")


def self_influence(features: Features, learning_rates: Sequence[float]) -> np.ndarray:
    """The influence of n examples on themselves, `Σ_t η_t ‖δ_t‖² ‖ĥ_t‖²`: [n] float64."""
    total = np.zeros(len(features))
    for t, rate in enumerate(learning_rates):
        total += rate * (np.square(features.loss_grad_norms[:, t]) * np.square(features.activation_norms[:, t]))
    return total


def canonical_scores(test: Features, train: Features, tests: np.ndarray, trains: np.ndarray, scoring: Scoring) -> np.ndarray:
    """The scores of P pairs, `Σ_t η_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)`, normalised: [P] float64.

    `tests` and `trains` [P] are row numbers in `test` and `train`. A score is a function of the two records and of `scoring`'s learning
    rates and normalisation alone: products of float32 are exact in float64, and the order of every addition is fixed.
    """
    scores = np.zeros(len(tests))
    width = test.loss_grads.shape[2] + test.activations.shape[2]
    step = max(1, _PAIR_SCRATCH // width)
    for start in range(0, len(tests), step):
        i, j = tests[start : start + step], trains[start : start + step]
        total = np.zeros(len(i))
        for t, rate in enumerate(scoring.learning_rates):
            loss_grads = fold_sum(np.multiply(test.loss_grads[i, t], train.loss_grads[j, t], dtype=np.float64))
            activations = fold_sum(np.multiply(test.activations[i, t], train.activations[j, t], dtype=np.float64))
            total += rate * (loss_grads * activations)
        scores[start : start + step] = total
    if scoring.normalize == "none":
        return scores
    divisor = np.sqrt(self_influence(train, scoring.learning_rates))[trains]
    if scoring.normalize == "cosine":
        divisor *= np.sqrt(self_influence(test, scoring.learning_rates))[tests]
    return np.divide(scores, divisor, out=np.zeros_like(scores), where=divisor > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """Scaled factors of n records: activations [T, n, D] of length 1, loss gradients [T, n, C] of length n_t over the record's unit."""

    loss_grads: tf.Tensor
    activations: tf.Tensor


def _scaled(
    features: Features, rows: np.ndarray, learning_rates: Sequence[float], units: np.ndarray | float, size: int, dtype: type = np.float32
) -> _Side:
    """Scales `rows` of `features`, divided by `units` [n]; rows of zeros fill up to `size`, so that shapes do not change."""
    rates = np.sqrt(np.asarray(learning_rates))
    lengths = features.activation_norms[rows]
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    loss_grads: np.ndarray = np.zeros((len(rates), size, features.loss_grads.shape[2]), dtype)
    activations: np.ndarray = np.zeros((len(rates), size, features.activations.shape[2]), dtype)
    for t, rate in enumerate(rates):
        for source, factor, target in (
            (features.loss_grads, rate * lengths[:, t] / units, loss_grads),
            (features.activations, inverse[:, t], activations),
        ):
            np.multiply(source[rows, t], factor[:, None], out=target[t, : len(rows)], dtype=np.float64, casting="same_kind")
    # On the CPU by name: a GPU may multiply in TensorFloat-32, for which the margin is not proven.
    with tf.device("/CPU:0"):
        return _Side(tf.constant(loss_grads), tf.constant(activations))


def _block_scores(test: _Side, train: _Side) -> np.ndarray:
    """`Σ_t (δ_t δ'_tᵀ) ∘ (ĥ_t ĥ'_tᵀ)` of scaled factors: [tests, trains], in their dtype."""
    with tf.device("/CPU:0"):
        scores: np.ndarray = _multiply(test.loss_grads, test.activations, train.loss_grads, train.activations).numpy()
    return scores


@tf.function
def _multiply(test_grads: tf.Tensor, test_activations: tf.Tensor, train_grads: tf.Tensor, train_activations: tf.Tensor) -> tf.Tensor:
    total = None
    for t in range(test_grads.shape[0]):
        loss_grads = tf.matmul(test_grads[t], train_grads[t], transpose_b=True)
        # The sum over checkpoints is outside the product.
        product = loss_grads * tf.matmul(test_activations[t], train_activations[t], transpose_b=True)
        total = product if total is None else total + product
    return total


def relative_margin(checkpoints: int, outputs: int, units: int, roundoff: float = 2.0**-24) -> float:
    """The proven error of a score over `N N'`, and that of the canonical score, which is far smaller.

    `roundoff` is u of the product's type: 2⁻²⁴ for float32, 2⁻⁵³ for float64.
    """
    terms = (outputs + units + checkpoints + 8) * roundoff
    if terms >= 0.5:
        raise ValueError(f"{outputs} outputs and {units} units are too many for a float32 search")
    return terms / (1 - terms) + 1e-12


def absolute_margin(checkpoints: int, outputs: int, units: int) -> float:
    """The proven error of a float32 score by underflow, in units of the scaled factors."""
    return checkpoints * (outputs + units + 2) * 2.0**-124


class _Pool:
    """Candidates of one sign for the tests of a block, with a bound below each one's k-th best score that rises as they come in.

    Scores are in units of the test example's N and, for opponents, negated.
    """

    def __init__(self, k: int, bound: np.ndarray, columns: int) -> None:
        n = len(bound)
        self._k = k
        self.bound = bound.copy()
        self._capacity = max(1, min(_slots(k), columns))
        self._lower = np.full((n, self._capacity), -np.inf)
        self._upper = np.full((n, self._capacity), -np.inf)
        self._column = np.zeros((n, self._capacity), np.int32)
        self._fill = np.zeros(n, np.int64)

    def offer(self, scores: np.ndarray, sign: int, unit: float, margin: float, first_column: int, final: bool) -> bool:
        """Takes in, from `sign · unit · scores` [n, m], whatever can be among the k best.

        Returns False, and takes nothing, where the margin lets so many pass that a product in a finer type pays; not if `final`.
        """
        n, m = scores.shape
        rows, columns = self._passing(scores, sign, unit, margin)
        counts = np.bincount(rows, minlength=n)
        if counts.max(initial=0) > self._k:
            # k of this block alone may already raise the bound enough.
            best = np.partition(scores * scores.dtype.type(sign), m - self._k, axis=1)[:, m - self._k]
            np.maximum(self.bound, (best.astype(np.float64) - margin) * unit, out=self.bound)
            rows, columns = self._passing(scores, sign, unit, margin)
            counts = np.bincount(rows, minlength=n)
        if not final and len(rows) > n * min(self._k, m) + n * m / 16:
            return False
        if (self._fill + counts).max(initial=0) > self._capacity:
            self._compact()
            rows, columns = self._passing(scores, sign, unit, margin)
            counts = np.bincount(rows, minlength=n)
            self._reserve(int((self._fill + counts).max()))
        starts = np.cumsum(counts) - counts
        slots = self._fill[rows] + np.arange(len(rows)) - starts[rows]
        values = scores[rows, columns].astype(np.float64) * (sign * unit)
        self._lower[rows, slots] = values - margin * unit
        self._upper[rows, slots] = values + margin * unit
        self._column[rows, slots] = columns + first_column
        self._fill += counts
        return True

    def _passing(self, scores: np.ndarray, sign: int, unit: float, margin: float) -> tuple[np.ndarray, np.ndarray]:
        # Rounded away from the bound, so that no score equal to it is lost; a bound beyond the type's range lets nothing pass.
        with np.errstate(over="ignore"):
            limit = np.nextafter((self.bound / unit - margin).astype(scores.dtype), scores.dtype.type(-np.inf))[:, None]
        # Flat, because NumPy finds the few ones of a long mask several times faster than those of a matrix.
        return np.divmod(np.flatnonzero(scores > limit if sign > 0 else scores < -limit), scores.shape[1])

    def _compact(self) -> None:
        """Raises the bounds to what the pool proves, and drops what can no longer pass."""
        if self._capacity >= self._k:
            kth = np.partition(self._lower, self._capacity - self._k, axis=1)[:, self._capacity - self._k]
            np.maximum(self.bound, kth, out=self.bound)
        self._keep((self._upper >= self.bound[:, None]) & (np.arange(self._capacity) < self._fill[:, None]))

    def _keep(self, keep: np.ndarray) -> None:
        order = np.argsort(~keep, axis=1, kind="stable")
        self._fill = keep.sum(axis=1)
        empty = np.arange(self._capacity) >= self._fill[:, None]
        for array, filler in ((self._lower, -np.inf), (self._upper, -np.inf), (self._column, 0)):
            array[:] = np.take_along_axis(array, order, axis=1)
            array[empty] = filler

    def _reserve(self, capacity: int) -> None:
        if capacity <= self._capacity:
            return
        more = capacity - self._capacity
        self._lower = np.pad(self._lower, ((0, 0), (0, more)), constant_values=-np.inf)
        self._upper = np.pad(self._upper, ((0, 0), (0, more)), constant_values=-np.inf)
        self._column = np.pad(self._column, ((0, 0), (0, more)))
        self._capacity += more

    def take_crowded(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Takes out the rows and columns of tests whose candidates, ties say, are too many to keep; None where there are none."""
        if self._fill.max(initial=0) <= _slots(self._k):
            return None
        self._compact()
        crowded = self._fill > _slots(self._k)
        taken = self._places(crowded)
        self._keep((np.arange(self._capacity) < self._fill[:, None]) & ~crowded[:, None])
        keep = max(1, min(_slots(self._k), self._capacity))
        self._lower, self._upper, self._column = self._lower[:, :keep].copy(), self._upper[:, :keep].copy(), self._column[:, :keep].copy()
        self._capacity = keep
        return taken

    def take_all(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of all that can be among the k best."""
        self._compact()
        return self._places(np.ones(len(self.bound), bool))

    def _places(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, slots = np.nonzero((np.arange(self._capacity) < self._fill[:, None]) & chosen[:, None])
        return rows, self._column[rows, slots]


def _slots(k: int) -> int:
    """How many candidates of a test example are kept before they are sifted."""
    return 4 * k + 64


class _TestBlock:
    """Some test examples: their scaled factors, and their best candidates so far."""

    def __init__(self, test: Features, rows: np.ndarray, norms: np.ndarray, scoring: Scoring) -> None:
        self.rows = rows
        self.norms = norms[rows]
        self._test = test
        self._scoring = scoring
        self.best: dict[int, Ranking | None] = {1: None, -1: None}
        self.single = self.scaled(np.float32)

    def scaled(self, dtype: type) -> _Side:
        """The scaled factors, padded to one of a few sizes."""
        return _scaled(self._test, self.rows, self._scoring.learning_rates, self.norms, _padded(len(self.rows)), dtype)

    def kth_score(self, sign: int) -> np.ndarray:
        """|canonical score| of the k-th candidate of each row so far, 0 where there are fewer, in units of N and rounded down: [n]."""
        kth = np.zeros(len(self.rows))
        best, k = self.best[sign], self._scoring.k
        if best is not None and len(best):
            first, last = np.searchsorted(best.rows, self.rows), np.searchsorted(best.rows, self.rows, side="right")
            full = last - first >= k
            kth[full] = np.abs(best.scores[first[full] + k - 1])
        return (kth if self._scoring.normalize == "cosine" else kth / self.norms) * (1 - 1e-12)

    def decide(self, sign: int, train: Features, tests: np.ndarray, trains: np.ndarray) -> None:
        """Scores finalists canonically, rows of the block and of `train`, and cuts; a part of them at a time."""
        for start in range(0, len(tests), _DECIDED_PAIRS):
            i, j = self.rows[tests[start : start + _DECIDED_PAIRS]], trains[start : start + _DECIDED_PAIRS]
            scores = canonical_scores(self._test, train, i, j, self._scoring)
            right = scores > 0 if sign > 0 else scores < 0
            i, j = i[right], j[right]
            found = cut(Ranking(i.astype(np.int32), scores[right], train.example_ids[j], train.labels[j]), self._scoring.k)
            before = self.best[sign]
            self.best[sign] = found if before is None else cut(concatenate([before, found]), self._scoring.k)


def _padded(n: int) -> int:
    """The next of a few sizes, so that TensorFlow traces few shapes."""
    size = 64
    while size < n:
        size *= 2
    return size


class Search:
    """The k strongest proponents and opponents of some test examples, among training examples that come in chunks.

    Exact: `result` is what sorting the canonical scores of all pairs would give, for any chunks in any order.
    """

    def __init__(self, test: Features, scoring: Scoring) -> None:
        self._test = test
        self._scoring = scoring
        _, self._checkpoints, self._outputs = test.loss_grads.shape
        self._units = test.activations.shape[2]
        norms = np.sqrt(self_influence(test, scoring.learning_rates))
        # Whose gradient is zero has neither proponents nor opponents.
        alive = np.flatnonzero(norms > 0)
        size = int(np.clip(_POOL_BYTES // (40 * _slots(scoring.k)), 16, BLOCK_TESTS))
        self._blocks = [_TestBlock(test, alive[i : i + size], norms, scoring) for i in range(0, len(alive), size)]
        self._margin = relative_margin(self._checkpoints, self._outputs, self._units) + absolute_margin(
            self._checkpoints, self._outputs, self._units
        )
        self._fine_margin = relative_margin(self._checkpoints, self._outputs, self._units, 2.0**-53)

    def scan(self, train: Features) -> Iterator[int]:
        """Searches a chunk of training examples; yields the number of pairs done, from time to time, which adds up to all of them."""
        yield (len(self._test) - sum(len(block.rows) for block in self._blocks)) * len(train)
        norms = np.sqrt(self_influence(train, self._scoring.learning_rates))
        # Strong gradients first: the bounds are high from the start, and a block's unit fits all of its columns.
        order = np.argsort(-norms, kind="stable")[: np.count_nonzero(norms > 0)]
        normalized = self._scoring.normalize != "none"

        def scaled(members: np.ndarray, dtype: type) -> _Side:
            units = norms[members] if normalized else norms[members[0]]
            return _scaled(train, members, self._scoring.learning_rates, units, min(BLOCK_TRAINS, _padded(len(members))), dtype)

        starts = range(0, len(order), BLOCK_TRAINS)
        columns = [order[start : start + BLOCK_TRAINS] for start in starts]
        sides = [scaled(members, np.float32) for members in columns]
        for block in self._blocks:
            pools = {sign: _Pool(self._scoring.k, block.kth_score(sign), len(order)) for sign in (1, -1)}
            for start, members, side in zip(starts, columns, sides, strict=True):
                shape = slice(len(block.rows)), slice(len(members))
                unit = 1.0 if normalized else float(norms[members[0]])
                scores = _block_scores(block.single, side)[shape]
                crowded = [sign for sign, pool in pools.items() if not pool.offer(scores, sign, unit, self._margin, start, False)]
                if crowded:
                    fine = _block_scores(block.scaled(np.float64), scaled(members, np.float64))[shape]
                    for sign in crowded:
                        pools[sign].offer(fine, sign, unit, self._fine_margin, start, True)
                for sign, pool in pools.items():
                    taken = pool.take_crowded()
                    if taken is not None:
                        block.decide(sign, train, taken[0], order[taken[1]])
                        np.maximum(pool.bound, block.kth_score(sign), out=pool.bound)
                yield len(block.rows) * len(members)
            for sign, pool in pools.items():
                rows, places = pool.take_all()
                block.decide(sign, train, rows, order[places])
            yield len(block.rows) * (len(train) - len(order))

    def result(self) -> TopK:
        """The top k of what was scanned; rows are those of the test examples."""
        found = {}
        for sign in (1, -1):
            parts = [best for block in self._blocks if (best := block.best[sign]) is not None]
            found[sign] = (
                concatenate(parts) if parts else Ranking(np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), self._test.labels[:0])
            )
        return TopK(found[1], found[-1])
