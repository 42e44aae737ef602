"""How likely a given label is wrong, from the activations and the given labels alone.

A network that was trained on wrong labels has learned some of them, so its own probabilities do not
tell. Here each example is judged by what the others say of it: by two linear classifiers on the
activations of each checkpoint, fitted to all given labels and evaluated as if the example had been
left out, which both have in closed form. A noise matrix, estimated from the examples that both are
surest of, tells which labels are confused with which; Bayes' rule joins the two.

| symbol | meaning |
|---|---|
| `r_tk` | ridge regression of one-hot labels on `[h_t, 1]`, left-one-out (Allen's PRESS residuals) |
| `g_tk` | log posterior of a linear discriminant analysis on `h_t`, its own class's mean without the example |
| `s_k` | `5 · mean_t r_tk + 0.15 · mean_t g_tk`, the evidence for class k |
| `N_kl` | how often the surest examples of class k (those whose s leads most) are labelled l |
| `P(l ∣ k)` | `N` shrunk towards a uniform error by empirical Bayes (a gamma prior of shape a for each cell, by marginal likelihood) |
| `u` | `a / (a + 1)`: near 1 where errors are spread evenly, near 0 where they go from certain classes to others |
| `q` | `softmax((s + u · (0.3 · mean_t g_t + 2 · e_l · logit p̄)) / (1 + 2 u))`, p̄ the label's mean probability at the checkpoints |

`suspicion = 1 − P(k = l ∣ l)` with `P(k ∣ l) ∝ q_k P(l ∣ k)`. A network learns errors that have a
pattern and not those that have none, so its own probability counts by u. The constants were chosen
on noises, networks and trainings other than those that the benchmark reports: the best mean of
average precision among those that hardly lost to the mean of `1 − p` anywhere, with sums of
suspicion near the number of errors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

RIDGE_WEIGHT, DISCRIMINANT_WEIGHT = 5.0, 0.15
# What errors without a pattern add.
EVEN_DISCRIMINANT_WEIGHT, EVEN_PROBABILITY_WEIGHT, EVEN_TEMPERATURE = 0.3, 2.0, 2.0
# Added to the diagonal of what is inverted, as a part of its mean diagonal entry.
_SHRINKAGE = 1e-3
# Of an example at most so many classes are weighed, its label among them.
CANDIDATES = 16
_SUREST = 0.1
_MARGIN_BINS = 1024
_LEAST_EVIDENCE = 1e-12
_LEAST_PROBABILITY = 1e-6
_ROWS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Sums over examples at one checkpoint, of activations h with a trailing 1.

    Attributes:
        products: [D, D] float64, of `h hᵀ`.
        sums: [K, D] float64, of h by label; the last column counts the examples of each.
    """

    products: np.ndarray
    sums: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.products + other.products, self.sums + other.sums)

    @property
    def examples(self) -> int:
        """How many were summed."""
        return int(self.sums[:, -1].sum())


def with_one(activations: np.ndarray, has_one: bool) -> np.ndarray:
    """Activations [n, D] as float64, with a trailing 1, which they may have already."""
    wide = activations.astype(np.float64)
    return wide if has_one else np.concatenate([wide, np.ones((len(wide), 1))], axis=1)


def moments(activations: np.ndarray, labels: np.ndarray, classes: int) -> Moments:
    """The moments of activations [n, D] with a trailing 1, and labels [n] below `classes`."""
    sums = np.zeros((classes, activations.shape[1]))
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    if len(present):
        sums[present] = np.add.reduceat(activations[order], starts, axis=0)
    return Moments(activations.T @ activations, sums)


def no_moments(units: int, classes: int) -> Moments:
    """The moments of no example; `units` counts the trailing 1."""
    return Moments(np.zeros((units, units)), np.zeros((classes, units)))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a positive semidefinite matrix whose diagonal is raised by a part of its
    mean.
    """
    mean = float(np.trace(matrix)) / max(1, len(matrix))
    return np.linalg.inv(matrix + (_SHRINKAGE * mean if mean > 0 else 1.0) * np.eye(len(matrix)))


@dataclasses.dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Both classifiers of one checkpoint, fitted to all examples, and evaluated without the one
    that is asked for.

    Attributes:
        inverse: [D, D], of `Σ h hᵀ + λ I`.
        weights: [D, K], of the ridge regression.
        precision: [D−1, D−1], the inverse of the pooled covariance within the classes.
        means: [K, D−1], of the classes.
        counts: [K] float64, examples of each class.
    """

    inverse: np.ndarray
    weights: np.ndarray
    precision: np.ndarray
    means: np.ndarray
    counts: np.ndarray

    @staticmethod
    def fit(found: Moments) -> LeaveOneOut:
        """Fits both to the moments of at least one example."""
        counts = found.sums[:, -1]
        inverse = _inverse(found.products)
        means = found.sums[:, :-1] / np.maximum(counts, 1)[:, None]
        within = found.products[:-1, :-1] - (means * counts[:, None]).T @ means
        return LeaveOneOut(
            inverse, inverse @ found.sums.T, _inverse(within / counts.sum()), means, counts
        )

    def evidence(
        self, activations: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What both say of examples that were among those fitted: r and g, [n, K] float64; g is −∞
        for a class that no example has.

        `activations` [n, D] have a trailing 1. The discriminant's covariance holds the example too,
        which hardly moves it. Of the only example of a class nothing is known without it: its
        distance to its class is taken to be 0.
        """
        parts = [
            self._evidence(activations[i : i + _ROWS], labels[i : i + _ROWS])
            for i in range(0, max(1, len(labels)), _ROWS)
        ]
        return np.concatenate([ridge for ridge, _ in parts]), np.concatenate(
            [discriminant for _, discriminant in parts]
        )

    def _evidence(
        self, activations: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(labels))
        leverage = np.einsum("nd,nd->n", activations @ self.inverse, activations)
        target = np.zeros((len(labels), len(self.counts)))
        target[rows, labels] = 1
        ridge = (
            target - (target - activations @ self.weights) / np.maximum(1 - leverage, 1e-9)[:, None]
        )
        h = activations[:, :-1]
        turned = h @ self.precision
        own = np.einsum("kd,kd->k", self.means @ self.precision, self.means)
        distance = np.maximum(
            np.einsum("nd,nd->n", turned, h)[:, None] - 2 * turned @ self.means.T + own, 0
        )
        # The mean without the example is farther away from it by N / (N − 1).
        others = self.counts[labels]
        distance[rows, labels] *= np.square(others / np.maximum(others - 1, 1))
        distance[rows[others <= 1], labels[others <= 1]] = 0
        with np.errstate(divide="ignore"):
            return ridge, np.log(self.counts) - distance / 2


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """The classes that examples may be of.

    Attributes:
        classes: [n, R] int32, ascending: those with the most evidence, and the label.
        values: [n, R] float32, s of each.
        discriminants: [n, R] float32, the mean of g of each.
        margins: [n] float32, by how much the first class of all leads the second in s.
    """

    classes: np.ndarray
    values: np.ndarray
    discriminants: np.ndarray
    margins: np.ndarray

    @staticmethod
    def of(ridge: np.ndarray, discriminant: np.ndarray, labels: np.ndarray) -> Evidence:
        """What is kept of the means of r and g over the checkpoints, [n, K] each: at most
        `CANDIDATES` classes.
        """
        values = RIDGE_WEIGHT * ridge + DISCRIMINANT_WEIGHT * discriminant
        kept = min(values.shape[1], CANDIDATES)
        best = np.argsort(-values, axis=1, kind="stable")[:, :kept].astype(np.int32)
        leads = np.take_along_axis(values, best[:, : min(2, kept)], axis=1)
        missing = ~(best == labels[:, None]).any(axis=1)
        best[missing, -1] = labels[missing]
        best.sort(axis=1)
        margins = leads[:, 0] - leads[:, 1] if kept > 1 else np.zeros(len(labels))
        ordered = [
            np.take_along_axis(one, best, axis=1).astype(np.float32)
            for one in (values, discriminant)
        ]
        return Evidence(best, ordered[0], ordered[1], margins.astype(np.float32))

    @property
    def first(self) -> np.ndarray:
        """The class with the most evidence of each example: [n]."""
        return self.classes[np.arange(len(self.classes)), self.values.argmax(axis=1)]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelCounts:
    """How many examples there are of each class with the most evidence, margin and label; equal
    whatever order they are added in.

    Attributes:
        keys: [m] int64, ascending: `(class · bins + bin) · K + label`, the bins from the largest
            margin down.
        counts: [m] int64.
    """

    keys: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(evidence: Evidence, labels: np.ndarray, classes: int) -> LabelCounts:
        """Counts examples."""
        margins = evidence.margins.astype(np.float64)
        with np.errstate(invalid="ignore"):
            share = np.where(np.isinf(margins), 1.0, margins / (1 + margins))
        bins = (
            _MARGIN_BINS - 1 - np.minimum((share * _MARGIN_BINS).astype(np.int64), _MARGIN_BINS - 1)
        )
        keys, counts = np.unique(
            (evidence.first.astype(np.int64) * _MARGIN_BINS + bins) * classes + labels,
            return_counts=True,
        )
        return LabelCounts(keys, counts.astype(np.int64))

    @staticmethod
    def merge(parts: Iterable[LabelCounts]) -> LabelCounts:
        """Adds counts up."""
        known = list(parts)
        keys, places = np.unique(
            np.concatenate([np.empty(0, np.int64), *(part.keys for part in known)]),
            return_inverse=True,
        )
        counts = np.zeros(len(keys), np.int64)
        np.add.at(
            counts,
            places.reshape(-1),
            np.concatenate([np.empty(0, np.int64), *(part.counts for part in known)]),
        )
        return LabelCounts(keys, counts)

    def surest(self, classes: int) -> np.ndarray:
        """Labels of the tenth of each class whose margin is largest, and of those that equal the
        least of them: [K, K] int64.
        """
        found = np.zeros((classes, classes), np.int64)
        place, labels = np.divmod(self.keys, classes)
        for k in range(classes):
            low, high = np.searchsorted(place, [k * _MARGIN_BINS, (k + 1) * _MARGIN_BINS])
            if low == high:
                continue
            running = np.cumsum(self.counts[low:high])
            last = place[low:high][np.searchsorted(running, _SUREST * running[-1])]
            chosen = slice(low, low + int(np.searchsorted(place[low:high], last, side="right")))
            np.add.at(found[k], labels[chosen], self.counts[chosen])
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """How labels go wrong.

    Attributes:
        matrix: [K, K] float64, P(label ∣ class).
        evenness: u, in (0, 1).
    """

    matrix: np.ndarray
    evenness: float


def estimate_noise(surest: np.ndarray) -> Noise:
    """The noise, from how often the surest examples of each class have each label: [K, K], K at
    least 2.

    Each wrong cell of a row has the prior mean `e · n_k / (K − 1)`, e being the rate of errors over
    all classes, and the shape of a gamma prior that makes all counts likeliest (negative binomial);
    so a few counts leave a cell near the mean, and many speak for themselves.
    """
    classes = len(surest)
    totals = surest.sum(axis=1).astype(np.float64)
    off = ~np.eye(classes, dtype=bool)
    rate = min((surest[off].sum() + 0.5) / (totals.sum() + 1), 1 - 1 / classes)
    seen = surest[off].astype(np.float64)
    means = np.repeat(totals, classes - 1) * rate / (classes - 1)
    numbers, places = np.unique(seen, return_inverse=True)

    def likelihood(shape: float) -> float:
        rising = np.array([math.lgamma(number + shape) for number in numbers]) - math.lgamma(shape)
        return float(
            (
                rising[places.reshape(-1)]
                + shape * np.log(shape / (shape + means))
                + seen * np.log(means / (shape + means) + 1e-300)
            ).sum()
        )

    shape = max(np.exp(np.linspace(-5, 7, 49)), key=likelihood)
    matrix = np.zeros((classes, classes))
    matrix[off] = (seen + shape) / (np.repeat(totals, classes - 1) + shape * (classes - 1) / rate)
    matrix[np.diag_indices(classes)] = 1 - matrix.sum(axis=1)
    return Noise(matrix, float(shape / (1 + shape)))


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """What becomes of evidence.

    Attributes:
        suspicion: [n] float64, the probability that the label is wrong.
        suggested_labels: [n] int64, the likeliest class; where the label is as likely, the label.
        suggested_probabilities: [n] float64, of it.
    """

    suspicion: np.ndarray
    suggested_labels: np.ndarray
    suggested_probabilities: np.ndarray


def judge(
    evidence: Evidence, labels: np.ndarray, label_probabilities: np.ndarray, noise: Noise
) -> Judgement:
    """Weighs evidence with the noise; `label_probabilities` [n] are p̄, or NaN where they are not
    known, and u counts as 0.
    """
    rows = np.arange(len(labels))
    own = evidence.classes == labels[:, None]
    known = ~np.isnan(label_probabilities)
    p = np.clip(
        np.where(known, label_probabilities, 0.5).astype(np.float64),
        _LEAST_PROBABILITY,
        1 - _LEAST_PROBABILITY,
    )
    even = EVEN_DISCRIMINANT_WEIGHT * evidence.discriminants + EVEN_PROBABILITY_WEIGHT * np.where(
        own, np.log(p / (1 - p))[:, None], 0
    )
    tempered = (evidence.values + noise.evenness * even) / (1 + EVEN_TEMPERATURE * noise.evenness)
    values = np.where(known[:, None], tempered, evidence.values)
    odds = np.exp(values - values.max(axis=1, keepdims=True))
    likely = (
        np.maximum(odds / odds.sum(axis=1, keepdims=True), _LEAST_EVIDENCE)
        * noise.matrix[evidence.classes, labels[:, None]]
    )
    posterior = likely / likely.sum(axis=1, keepdims=True)
    best = np.where(own, posterior * (1 + 1e-12), posterior).argmax(axis=1)
    # Summed, not subtracted from 1, so that small ones keep their digits.
    return Judgement(
        np.where(own, 0, posterior).sum(axis=1),
        evidence.classes[rows, best].astype(np.int64),
        posterior[rows, best],
    )


def all_evidence(
    fitted: Sequence[LeaveOneOut], activations: Sequence[np.ndarray], labels: np.ndarray
) -> Evidence:
    """The evidence of all checkpoints; `activations` holds [n, D] for each, with a trailing 1."""
    ridge, discriminant = fitted[0].evidence(activations[0], labels)
    for one, h in zip(fitted[1:], activations[1:], strict=True):
        more = one.evidence(h, labels)
        ridge += more[0]
        discriminant += more[1]
    return Evidence.of(ridge / len(fitted), discriminant / len(fitted), labels)
