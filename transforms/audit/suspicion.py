"""Suspicion: the probability that a given label is wrong, from activations and given labels.

A network that was trained on wrong labels has learned some of them, so its own probabilities are
no proof. All other examples give the evidence on each label: two linear classifiers on the
activations of each checkpoint, fitted to all given labels, and evaluated in closed form as if the
example had been left out. A noise matrix, estimated from the examples of which both classifiers are
most certain, says which labels are confused with which. Bayes' rule joins the two.

| symbol | meaning |
|---|---|
| `r_tk` | leave-one-out ridge regression of one-hot labels on `[h_t, 1]` (Allen's PRESS) |
| `g_tk` | log posterior of a linear discriminant on `h_t`, the class's mean without the example |
| `s_k` | `5 · mean_t r_tk + 0.15 · mean_t g_tk`, the evidence for class k |
| `N_kl` | how often the most certain examples of class k (by the lead of s) are labelled l |
| `P(l ∣ k)` | N, shrunk towards a uniform error by empirical Bayes |
| `a` | the shape of the gamma prior of each cell of N, by marginal likelihood |
| `u` | `a / (a + 1)`: near 1 for errors spread evenly, near 0 for errors between certain classes |
| `p̄` | the mean probability of the label l at the checkpoints |
| `q` | `softmax((s + u · (0.3 · mean_t g_t + 2 · e_l · logit p̄)) / (1 + 2 u))` |

`suspicion = 1 − P(k = l ∣ l)` with `P(k ∣ l) ∝ q_k P(l ∣ k)`. A network learns errors with a
pattern, and not those without, so its own probability counts by u.

The weights were chosen on noises, networks and trainings other than those of the benchmark
(`benchmarks.audit`): the best mean of average precision among those that hardly lost to the mean of
`1 − p` anywhere, with sums of suspicion near the number of errors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

# Weights of r and g in s; see above for their choice, also of the next three.
RIDGE_WEIGHT, DISCRIMINANT_WEIGHT = 5.0, 0.15
# Weights in q that count by u, and of u in its divisor.
EVEN_DISCRIMINANT_WEIGHT, EVEN_PROBABILITY_WEIGHT, EVEN_TEMPERATURE = 0.3, 2.0, 2.0
# Added to the diagonal of a matrix before it is inverted, as a fraction of the diagonal's mean.
_SHRINKAGE = 1e-3
# Largest number of classes that are weighed for an example, its label among them; the others are
# far less likely.
CANDIDATES = 16
# Fraction of the examples of a class from which noise is estimated: the most certain tenth.
_SUREST = 0.1
# Resolution of the lead of s, so that counts of examples can be added in any order.
_MARGIN_BINS = 1024
# Least q: no class with evidence is impossible.
_LEAST_EVIDENCE = 1e-12
# p̄ is clipped to this distance from 0 and 1, where its logit is infinite.
_LEAST_PROBABILITY = 1e-6
# Examples that are evaluated at once; bounds temporary arrays of [rows, K] and [rows, D].
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
        """The number of examples."""
        return int(self.sums[:, -1].sum())


def with_bias(activations: np.ndarray, has_bias: bool) -> np.ndarray:
    """Returns activations [n, D] as float64 with a trailing 1, unless they have it already."""
    wide = activations.astype(np.float64)
    return wide if has_bias else np.concatenate([wide, np.ones((len(wide), 1))], axis=1)


def moments(activations: np.ndarray, labels: np.ndarray, classes: int) -> Moments:
    """Sums activations [n, D] with a trailing 1, by labels [n] below `classes`."""
    sums = np.zeros((classes, activations.shape[1]))
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    if len(present):
        sums[present] = np.add.reduceat(activations[order], starts, axis=0)
    return Moments(activations.T @ activations, sums)


def no_moments(units: int, classes: int) -> Moments:
    """Returns the moments of no example; `units` counts the trailing 1."""
    return Moments(np.zeros((units, units)), np.zeros((classes, units)))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a positive semidefinite matrix after its diagonal is raised."""
    mean = float(np.trace(matrix)) / max(1, len(matrix))
    return np.linalg.inv(matrix + (_SHRINKAGE * mean if mean > 0 else 1.0) * np.eye(len(matrix)))


@dataclasses.dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The two classifiers of one checkpoint, fitted to all examples, and evaluated for each example
    as if it had been left out.

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
    def fit(moments: Moments) -> LeaveOneOut:
        """Fits both classifiers to the moments of at least one example."""
        counts = moments.sums[:, -1]
        inverse = _inverse(moments.products)
        means = moments.sums[:, :-1] / np.maximum(counts, 1)[:, None]
        within = moments.products[:-1, :-1] - (means * counts[:, None]).T @ means
        return LeaveOneOut(
            inverse, inverse @ moments.sums.T, _inverse(within / counts.sum()), means, counts
        )

    def evidence(
        self, activations: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns r and g of examples that were among those fitted: [n, K] float64 each. g is −∞
        for a class without examples.

        `activations` [n, D] have a trailing 1. The discriminant's covariance includes the example,
        which hardly moves it. The only example of a class has a distance of 0 to its class, since
        nothing else is known of the class.
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
        # PRESS: the residual without an example is its residual over 1 − its leverage.
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
    """The evidence on the labels of n examples: their likeliest classes R, the label among them.

    Attributes:
        classes: [n, R] int32, ascending: the classes with the most evidence, and the label.
        values: [n, R] float32, s of each class.
        discriminants: [n, R] float32, the mean over the checkpoints of g of each class.
        margins: [n] float32, the lead in s of the first class of all K over the second.
    """

    classes: np.ndarray
    values: np.ndarray
    discriminants: np.ndarray
    margins: np.ndarray

    @staticmethod
    def of(ridge: np.ndarray, discriminant: np.ndarray, labels: np.ndarray) -> Evidence:
        """Chooses at most `CANDIDATES` classes by the means of r and g over the checkpoints, [n, K]
        each.
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
            np.take_along_axis(array, best, axis=1).astype(np.float32)
            for array in (values, discriminant)
        ]
        return Evidence(best, ordered[0], ordered[1], margins.astype(np.float32))

    @property
    def first(self) -> np.ndarray:
        """The class with the most evidence, of each example: [n]."""
        return self.classes[np.arange(len(self.classes)), self.values.argmax(axis=1)]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelCounts:
    """Numbers of examples by the class with the most evidence, margin and label; they are equal in
    whatever order they are added.

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
        """Adds counts."""
        known = list(parts)
        keys, indices = np.unique(
            np.concatenate([np.empty(0, np.int64), *(part.keys for part in known)]),
            return_inverse=True,
        )
        counts = np.zeros(len(keys), np.int64)
        np.add.at(
            counts,
            indices.reshape(-1),
            np.concatenate([np.empty(0, np.int64), *(part.counts for part in known)]),
        )
        return LabelCounts(keys, counts)

    def surest(self, classes: int) -> np.ndarray:
        """Counts the labels of the most certain examples of each class: [K, K] int64.

        They are the tenth with the largest margins, and all whose margin equals the least of these.
        """
        surest = np.zeros((classes, classes), np.int64)
        bins, labels = np.divmod(self.keys, classes)
        for k in range(classes):
            low, high = np.searchsorted(bins, [k * _MARGIN_BINS, (k + 1) * _MARGIN_BINS])
            if low == high:
                continue
            running = np.cumsum(self.counts[low:high])
            last = bins[low:high][np.searchsorted(running, _SUREST * running[-1])]
            chosen = slice(low, low + int(np.searchsorted(bins[low:high], last, side="right")))
            np.add.at(surest[k], labels[chosen], self.counts[chosen])
        return surest


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """The noise of labels.

    Attributes:
        matrix: [K, K] float64, P(label ∣ class).
        evenness: u, in (0, 1).
    """

    matrix: np.ndarray
    evenness: float


def estimate_noise(surest: np.ndarray) -> Noise:
    """Estimates the noise from the counts N [K, K], K at least 2, of the labels (columns) of the
    most certain examples of each class (rows).

    Each wrong cell of row k has a gamma prior with the mean `e · n_k / (K − 1)`, where e is the
    rate of errors over all classes. The priors' common shape maximises the marginal (negative
    binomial) likelihood of all counts. So a few counts leave a cell near the mean, and many counts
    outweigh it.
    """
    classes = len(surest)
    totals = surest.sum(axis=1).astype(np.float64)
    off = ~np.eye(classes, dtype=bool)
    # Half an error more, so that no rate is 0 (Krichevsky and Trofimov 1981).
    rate = min((surest[off].sum() + 0.5) / (totals.sum() + 1), 1 - 1 / classes)
    seen = surest[off].astype(np.float64)
    means = np.repeat(totals, classes - 1) * rate / (classes - 1)
    numbers, indices = np.unique(seen, return_inverse=True)

    def likelihood(shape: float) -> float:
        rising = np.array([math.lgamma(number + shape) for number in numbers]) - math.lgamma(shape)
        return float(
            (
                rising[indices.reshape(-1)]
                + shape * np.log(shape / (shape + means))
                + seen * np.log(means / (shape + means) + 1e-300)
            ).sum()
        )

    # From 0.007 to 1,100 in steps of a quarter: u is then known to about 0.06.
    shape = max(np.exp(np.linspace(-5, 7, 49)), key=likelihood)
    matrix = np.zeros((classes, classes))
    matrix[off] = (seen + shape) / (np.repeat(totals, classes - 1) + shape * (classes - 1) / rate)
    matrix[np.diag_indices(classes)] = 1 - matrix.sum(axis=1)
    return Noise(matrix, float(shape / (1 + shape)))


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """The judgement of n labels.

    Attributes:
        suspicion: [n] float64, the probability that the label is wrong.
        suggested_labels: [n] int64, the likeliest class; the label where it is as likely.
        suggested_probabilities: [n] float64, the probability of the likeliest class.
    """

    suspicion: np.ndarray
    suggested_labels: np.ndarray
    suggested_probabilities: np.ndarray


def judge(
    evidence: Evidence, labels: np.ndarray, label_probabilities: np.ndarray, noise: Noise
) -> Judgement:
    """Judges labels [n] by the evidence and the noise.

    `label_probabilities` [n] are p̄; where they are unknown (NaN), u counts as 0.
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
    # A label that is as likely as another class, to rounding, is kept.
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
    """Joins the evidence of all checkpoints; `activations` holds [n, D] for each, with a trailing
    1.
    """
    ridge, discriminant = fitted[0].evidence(activations[0], labels)
    for model, h in zip(fitted[1:], activations[1:], strict=True):
        more = model.evidence(h, labels)
        ridge += more[0]
        discriminant += more[1]
    return Evidence.of(ridge / len(fitted), discriminant / len(fitted), labels)
