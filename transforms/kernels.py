"""Influence of pairs: one canonical score, and a fast search for the pairs that can be among the k best by it.

The search multiplies in float32, whose bits depend on shapes, threads and processors. So it decides nothing: it keeps every pair whose
score lies within a proven error margin of its test example's k-th, and the canonical score of the two records alone decides among
those. The result is the same for every way of cutting the work.

The margin. Let `n_t = √η_t ‖δ_t‖ ‖ĥ_t‖` and `N² = Σ_t n_t²` (the self-influence). Activations are scaled to length 1 and loss
gradients to `n_t` over a common unit, so that all factors are at most 1 and nothing overflows. With `u = 2⁻²⁴`, a float32 dot
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

    loss_grads: np.ndarray
    activations: np.ndarray


def _scaled(features: Features, rows: np.ndarray, learning_rates: Sequence[float], units: np.ndarray, size: int) -> _Side:
    """Scales `rows` of `features`, divided by `units` [n]; rows of zeros fill up to `size`, so that shapes do not change."""
    rates = np.sqrt(np.asarray(learning_rates))
    lengths = features.activation_norms[rows]
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    loss_grads = np.zeros((len(rates), size, features.loss_grads.shape[2]), np.float32)
    activations = np.zeros((len(rates), size, features.activations.shape[2]), np.float32)
    for t, rate in enumerate(rates):
        np.multiply(
            features.loss_grads[rows, t],
            (rate * lengths[:, t] / units)[:, None],
            out=loss_grads[t, : len(rows)],
            dtype=np.float64,
            casting="same_kind",
        )
        np.multiply(
            features.activations[rows, t], inverse[:, t, None], out=activations[t, : len(rows)], dtype=np.float64, casting="same_kind"
        )
    return _Side(loss_grads, activations)


@tf.function
def _block_scores(test_grads: tf.Tensor, test_activations: tf.Tensor, train_grads: tf.Tensor, train_activations: tf.Tensor) -> tf.Tensor:
    """`Σ_t (δ_t δ'_tᵀ) ∘ (ĥ_t ĥ'_tᵀ)` of scaled factors: [tests, trains] float32. The sum over checkpoints is outside the product."""
    total = None
    for t in range(test_grads.shape[0]):
        product = tf.matmul(test_grads[t], train_grads[t], transpose_b=True) * tf.matmul(
            test_activations[t], train_activations[t], transpose_b=True
        )
        total = product if total is None else total + product
    return total


def relative_margin(checkpoints: int, outputs: int, units: int) -> float:
    """The proven error of a float32 score over `N N'`, plus that of the canonical score, which is far smaller."""
    terms = (outputs + units + checkpoints + 8) * 2.0**-24
    if terms >= 0.5:
        raise ValueError(f"{outputs} outputs and {units} units are too many for a float32 search")
    return terms / (1 - terms) + 1e-12


def absolute_margin(checkpoints: int, outputs: int, units: int) -> float:
    """The proven error of a float32 score by underflow, in units of the scaled factors."""
    return checkpoints * (outputs + units + 2) * 2.0**-124


class _Pool:
    """Candidates of one sign for the tests of a block, with a bound below each one's k-th best score that rises as they come in.

    Scores are in scaled units and, for opponents, negated.
    """

    def __init__(self, k: int, bound: np.ndarray, columns: int) -> None:
        n = len(bound)
        self._k = k
        self.bound = bound.copy()
        self._capacity = max(1, min(4 * k + 64, columns))
        self._lower = np.full((n, self._capacity), -np.inf)
        self._upper = np.full((n, self._capacity), -np.inf)
        self._column = np.zeros((n, self._capacity), np.int32)
        self._fill = np.zeros(n, np.int64)

    def offer(self, scores: np.ndarray, sign: int, margin: float, first_column: int) -> None:
        """Takes in, from `sign · scores` [n, m], whatever can be among the k best."""
        rows, columns = self._passing(scores, sign, margin)
        counts = np.bincount(rows, minlength=len(self.bound))
        if (self._fill + counts).max(initial=0) > self._capacity:
            self._compact()
            # k of this block alone may already raise the bound enough.
            m = scores.shape[1]
            if counts.max() > self._k:
                best = np.partition(scores * np.float32(sign), m - self._k, axis=1)[:, m - self._k]
                np.maximum(self.bound, best.astype(np.float64) - margin, out=self.bound)
                rows, columns = self._passing(scores, sign, margin)
                counts = np.bincount(rows, minlength=len(self.bound))
            self._reserve(int((self._fill + counts).max()))
        starts = np.cumsum(counts) - counts
        slots = self._fill[rows] + np.arange(len(rows)) - starts[rows]
        values = scores[rows, columns].astype(np.float64) * sign
        self._lower[rows, slots] = values - margin
        self._upper[rows, slots] = values + margin
        self._column[rows, slots] = columns + first_column
        self._fill += counts

    def _passing(self, scores: np.ndarray, sign: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
        # Rounded away from the bound, so that no score equal to it is lost.
        limit = np.nextafter((self.bound - margin).astype(np.float32), np.float32(-np.inf))[:, None]
        # Flat, because NumPy finds the few ones of a long mask several times faster than those of a matrix.
        return np.divmod(np.flatnonzero(scores > limit if sign > 0 else scores < -limit), scores.shape[1])

    def _compact(self) -> None:
        """Raises the bounds to what the pool proves, and drops what can no longer pass."""
        if self._capacity >= self._k:
            kth = np.partition(self._lower, self._capacity - self._k, axis=1)[:, self._capacity - self._k]
            np.maximum(self.bound, kth, out=self.bound)
        keep = (self._upper >= self.bound[:, None]) & (np.arange(self._capacity) < self._fill[:, None])
        order = np.argsort(~keep, axis=1, kind="stable")
        self._fill = keep.sum(axis=1)
        empty = np.arange(self._capacity) >= self._fill[:, None]
        for array, filler in ((self._lower, -np.inf), (self._upper, -np.inf), (self._column, 0)):
            array[:] = np.take_along_axis(array, order, axis=1)
            array[empty] = filler

    def _reserve(self, capacity: int) -> None:
        if capacity <= self._capacity:
            return
        more = max(capacity, 2 * self._capacity) - self._capacity
        self._lower = np.pad(self._lower, ((0, 0), (0, more)), constant_values=-np.inf)
        self._upper = np.pad(self._upper, ((0, 0), (0, more)), constant_values=-np.inf)
        self._column = np.pad(self._column, ((0, 0), (0, more)))
        self._capacity += more

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of all that can be among the k best."""
        self._compact()
        rows, slots = np.nonzero(np.arange(self._capacity) < self._fill[:, None])
        return rows, self._column[rows, slots]


class _TestBlock:
    """Up to `BLOCK_TESTS` test examples: their scaled factors, and their best candidates so far."""

    def __init__(self, test: Features, rows: np.ndarray, norms: np.ndarray, scoring: Scoring) -> None:
        self.rows = rows
        self.norms = norms[rows]
        scaled = _scaled(test, rows, scoring.learning_rates, self.norms, min(BLOCK_TESTS, _padded(len(rows))))
        self.loss_grads = tf.constant(scaled.loss_grads)
        self.activations = tf.constant(scaled.activations)
        self.best: dict[int, Ranking | None] = {1: None, -1: None}

    def kth_score(self, sign: int, k: int) -> np.ndarray:
        """|canonical score| of the k-th candidate of each row so far, 0 where there are fewer: [n] float64."""
        kth = np.zeros(len(self.rows))
        best = self.best[sign]
        if best is not None and len(best):
            offsets = np.searchsorted(best.rows, self.rows), np.searchsorted(best.rows, self.rows, side="right")
            full = offsets[1] - offsets[0] >= k
            kth[full] = np.abs(best.scores[offsets[0][full] + k - 1])
        return kth


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
        self._blocks = [_TestBlock(test, alive[i : i + BLOCK_TESTS], norms, scoring) for i in range(0, len(alive), BLOCK_TESTS)]

    def scan(self, train: Features) -> Iterator[int]:
        """Searches a chunk of training examples; yields the number of pairs done, from time to time, which adds up to all of them."""
        yield (len(self._test) - sum(len(block.rows) for block in self._blocks)) * len(train)
        norms = np.sqrt(self_influence(train, self._scoring.learning_rates))
        order = np.argsort(-norms, kind="stable")
        # Strong gradients first: the bounds are high from the start, and a block's margin fits all of its columns.
        order = order[: np.count_nonzero(norms > 0)]
        if not len(order):
            yield len(train) * sum(len(block.rows) for block in self._blocks)
            return
        normalized = self._scoring.normalize != "none"
        unit = 1.0 if normalized else float(norms[order[0]])
        units = norms if normalized else np.full_like(norms, unit)
        relative = relative_margin(self._checkpoints, self._outputs, self._units)
        absolute = absolute_margin(self._checkpoints, self._outputs, self._units)
        columns = []
        for start in range(0, len(order), BLOCK_TRAINS):
            members = order[start : start + BLOCK_TRAINS]
            scaled = _scaled(
                train,
                members,
                self._scoring.learning_rates,
                units[members],
                min(BLOCK_TRAINS, _padded(len(members))),
            )
            margin = relative * (1.0 if normalized else norms[members[0]] / unit) + absolute
            columns.append((start, len(members), tf.constant(scaled.loss_grads), tf.constant(scaled.activations), margin))
        for block in self._blocks:
            pools = {sign: _Pool(self._scoring.k, self._scaled_bound(block, sign, unit), len(order)) for sign in (1, -1)}
            for start, size, loss_grads, activations, margin in columns:
                scores = _block_scores(block.loss_grads, block.activations, loss_grads, activations).numpy()[: len(block.rows), :size]
                for sign, pool in pools.items():
                    pool.offer(scores, sign, margin, start)
                yield len(block.rows) * size
            for sign, pool in pools.items():
                self._decide(block, sign, train, order, *pool.finish())
            yield len(block.rows) * (len(train) - len(order))

    def _scaled_bound(self, block: _TestBlock, sign: int, unit: float) -> np.ndarray:
        """The k-th score of the chunks before, in scaled units and rounded down."""
        kth = block.kth_score(sign, self._scoring.k)
        if self._scoring.normalize == "cosine":
            return kth * (1 - 1e-12)
        return kth / (block.norms * unit) * (1 - 1e-12)

    def _decide(self, block: _TestBlock, sign: int, train: Features, order: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        """Scores the finalists canonically and cuts."""
        tests, trains = block.rows[rows], order[columns]
        scores = canonical_scores(self._test, train, tests, trains, self._scoring)
        right = scores > 0 if sign > 0 else scores < 0
        found = cut(
            Ranking(tests[right].astype(np.int32), scores[right], train.example_ids[trains[right]], train.labels[trains[right]]),
            self._scoring.k,
        )
        before = block.best[sign]
        block.best[sign] = found if before is None else cut(concatenate([before, found]), self._scoring.k)

    def result(self) -> TopK:
        """The top k of what was scanned; rows are those of the test examples."""
        found = {}
        for sign in (1, -1):
            parts = [best for block in self._blocks if (best := block.best[sign]) is not None]
            found[sign] = (
                concatenate(parts) if parts else Ranking(np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), self._test.labels[:0])
            )
        return TopK(found[1], found[-1])
