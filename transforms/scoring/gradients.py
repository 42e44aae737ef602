"""Whole gradients of examples whose records are positions, and the scores of examples by them.

The gradient of an example's loss at checkpoint t is `G_t = Σ_a δ_a ⊗ ĥ_a`, over its positions a.
The influence of an example on another, the sum of the scores of all pairs of their positions, is
`Σ_t η_t <G_t, G'_t>`: a dot product of two vectors of T·C·D numbers. Pair by pair it would take
P·P'·(C + D) products instead of C·D, which is the longer way as soon as examples have more than a
few positions; and a vector does not grow with them.

A vector holds `√η_t G_t`, one checkpoint after the other, in float64: products of float32 are exact
in it, and they are added in the order of the positions. The canonical score of two examples is the
`lane_sum` of the products of their vectors, normalised, so it is a function of their records and
nothing else.

The margin of a float32 product of vectors over their lengths. With `u = 2⁻²⁴`, a term goes through
a rounding of each factor, one of the product and the additions of its part and of the parts, in any
order, `s` operations in all; the errors add up to at most `γ(s) Σ |x y| / (N N') ≤ γ(s)`, `γ(m) = m
u / (1 − m u)`, by Cauchy–Schwarz. Where a factor or a product underflows, or is flushed to zero, a
term is off by at most 2⁻¹²⁵ more. The canonical score itself and the lengths are sums of K terms in
float64, likewise with `u = 2⁻⁵³`. There nothing overflows or underflows: products are whole
multiples of 2⁻²⁹⁸ and at most 2²⁵⁶, times a √η within 10^±15.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from transforms.core.features import Features
from transforms.core.ids import example_of, id_array
from transforms.core.summation import LANES
from transforms.scoring.influence import Scoring
from transforms.scoring.kernels.compiling import compiled

# The number of wrong predictions where labels are numbers.
UNKNOWN = -1

# Terms of a part of a float32 product, at least: products of narrower matrices are slow.
_SHORTEST_PART = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of n examples, and what their rows hold.

    Attributes:
        example_ids: [n] byte strings (dtype S), UTF-8.
        positions: [n] int64, numbers of positions that count.
        wrong: [n] int64, numbers of these at which the last checkpoint predicts another label;
            `UNKNOWN` for a regression.
        label_probabilities: [n] float64, means of those of their labels at the last checkpoint; NaN
            for a regression.
        vectors: [n, T·C·D] float64.
        self_influence: [n] float64, the canonical product of a vector with itself.
    """

    example_ids: np.ndarray
    positions: np.ndarray
    wrong: np.ndarray
    label_probabilities: np.ndarray
    vectors: np.ndarray
    self_influence: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)

    def take(self, rows: Any) -> Gradients:
        """Returns the gradients of some rows: a slice, an index array or a mask."""
        return Gradients(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def canonical_scores(
    test: Gradients, train: Gradients, tests: np.ndarray, trains: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """Returns the scores of P pairs, rows `tests` and `trains` [P], normalised: [P] float64."""
    scores = np.empty(len(tests))
    _multiply_pairs(test.vectors, train.vectors, tests, trains, scores)
    divisors = np.ones(len(tests))
    if scoring.divides_train:
        divisors *= np.sqrt(train.self_influence)[trains]
    if scoring.divides_test:
        divisors *= np.sqrt(test.self_influence)[tests]
    return np.divide(scores, divisors, out=np.zeros_like(scores), where=divisors > 0)


def part_size(size: int) -> int:
    """Returns the number of terms of a part of a float32 product of vectors of this size: they are
    added before their sum is added to that of the parts before.
    """
    return max(_SHORTEST_PART, math.isqrt(size))


def cosine_margin(size: int) -> float:
    """Returns the proven difference between a float32 product of vectors of this size, over their
    lengths, and their canonical score over N N'.

    Raises:
        ValueError: there are so many terms that float32 proves nothing.
    """
    part = part_size(size)
    terms = (min(size, part) + -(-size // part) + 8) * 2.0**-24
    if terms >= 0.1:
        raise ValueError(f"gradients of {size} numbers are too large to score")
    return terms / (1 - terms) + size * 2.0**-124 + 2.1 * (size + 32) * 2.0**-53


class Summing:
    """Sums of records, as they come, to gradients of at most `rows` examples at a time.

    Records of an example follow each other, in the order of their positions.
    """

    def __init__(self, learning_rates: tuple[float, ...], rows: int) -> None:
        self._roots = np.sqrt(np.asarray(learning_rates, np.float64))
        self._rows = rows
        self._begin()

    def _begin(self) -> None:
        self._ids: list[bytes] = []
        self._positions, self._wrong = np.zeros((2, self._rows), np.int64)
        self._probabilities = np.zeros(self._rows)
        self._vectors = np.empty((0, len(self._roots), 0, 0))

    def add(self, records: Features) -> Iterator[Gradients]:
        """Adds records (at least one); yields gradients whenever no further example has room."""
        owners = [example_of(record) for record in records.example_ids.tolist()]
        differs = _differ(records.labels, records.predictions)
        start = 0
        while start < len(owners):
            stop, slots = start, []
            while stop < len(owners):
                if not self._ids or owners[stop] != self._ids[-1]:
                    if len(self._ids) == self._rows:
                        break
                    self._ids.append(owners[stop])
                slots.append(len(self._ids) - 1)
                stop += 1
            self._add(
                records.take(slice(start, stop)), np.array(slots, np.int64), differs[start:stop]
            )
            if stop < len(owners):
                yield self.rest()
            start = stop

    def _add(self, records: Features, slots: np.ndarray, differs: np.ndarray) -> None:
        if not len(self._vectors):
            _, checkpoints, outputs = records.loss_grads.shape
            self._vectors = np.zeros(
                (self._rows, checkpoints, outputs, records.activations.shape[2])
            )
        _add_products(self._vectors, slots, records.loss_grads, records.activations)
        # In turn: sums depend on the order.
        np.add.at(self._positions, slots, 1)
        np.add.at(self._wrong, slots, differs)
        np.add.at(self._probabilities, slots, records.label_probabilities[:, -1].astype(np.float64))
        if records.labels.dtype.kind == "f":
            self._wrong[slots] = UNKNOWN

    def rest(self) -> Gradients:
        """Returns the gradients of the records since the last yielded ones; then begins anew."""
        n = len(self._ids)
        vectors = self._vectors[:n]
        vectors *= self._roots[:, None, None]
        vectors = vectors.reshape(n, math.prod(vectors.shape[1:]))
        influence = np.empty(n)
        _multiply_pairs(vectors, vectors, np.arange(n), np.arange(n), influence)
        positions = self._positions[:n]
        gradients = Gradients(
            id_array(self._ids),
            positions,
            self._wrong[:n],
            self._probabilities[:n] / positions,
            vectors,
            influence,
        )
        self._begin()
        return gradients


def _differ(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Returns which of n records are predicted otherwise than labelled: [n] bool."""
    width = min(labels.shape[1], predictions.shape[1])
    longer = max(labels, predictions, key=lambda labels: labels.shape[1])
    return (labels[:, :width] != predictions[:, :width]).any(axis=1) | (longer[:, width:] >= 0).any(
        axis=1
    )


@compiled()
def _add_products(
    vectors: np.ndarray, slots: np.ndarray, loss_grads: np.ndarray, activations: np.ndarray
) -> None:
    """Adds `δ ⊗ ĥ` of records, loss_grads [p, T, C] and activations [p, T, D] float32, to vectors
    [n, T, C, D] in their slots [p].
    """
    _, checkpoints, outputs, units = vectors.shape
    for p in range(len(slots)):
        for t in range(checkpoints):
            for c in range(outputs):
                factor = np.float64(loss_grads[p, t, c])
                row = vectors[slots[p], t, c]
                for d in range(units):
                    row[d] += factor * np.float64(activations[p, t, d])


@compiled()
def _multiply_pairs(
    test: np.ndarray, train: np.ndarray, tests: np.ndarray, trains: np.ndarray, products: np.ndarray
) -> None:
    """Fills products [P] with the `lane_sum` of the products of rows `tests` of [n, K] and `trains`
    of [m, K].
    """
    lanes = np.empty(LANES)
    for p in range(len(tests)):
        x, y = test[tests[p]], train[trains[p]]
        whole = len(x) // LANES * LANES
        lanes[:] = 0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += x[start + lane] * y[start + lane]
        for lane in range(len(x) - whole):
            lanes[lane] += x[whole + lane] * y[whole + lane]
        width = LANES
        while width > 1:
            width //= 2
            for lane in range(width):
                lanes[lane] += lanes[lane + width]
        products[p] = lanes[0]
