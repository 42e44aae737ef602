"""Measurements of a training set that a projection is fitted to: second moments of its factors,
energies of coordinates in their eigenvectors, and its strongest examples.

Each is a sum or a selection over parts of the set, so that the parts can be measured anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from transforms.core.features import Features
from transforms.scoring.influence import self_influence
from transforms.vectors.projections.projection import Scaling

# Records of the sample that `auto` chooses by. Their features are gathered in one worker's memory,
# and all pairs of them with 256 are scored; the number is a judgement, not a measurement.
SAMPLE = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoments:
    """Sums over the examples of a part, of one checkpoint; parts are added up with `+`.

    Attributes:
        loss_grads: `Σ ‖ĥ‖² δ δᵀ`, [C, C] float64, δ scaled.
        activations: `Σ ‖δ‖² ĥ ĥᵀ`, [D, D] float64.
    """

    loss_grads: np.ndarray
    activations: np.ndarray

    @staticmethod
    def of(loss_grads: np.ndarray, activations: np.ndarray) -> SecondMoments:
        """Returns the sums of n examples: scaled [n, C] and [n, D]."""
        loss_grad_norms, activation_norms = (
            np.sqrt(np.square(factor, dtype=np.float64).sum(axis=1))[:, None]
            for factor in (loss_grads, activations)
        )
        left, right = loss_grads * activation_norms, activations * loss_grad_norms
        return SecondMoments(_product(left, left), _product(right, right))

    def __add__(self, other: SecondMoments) -> SecondMoments:
        return SecondMoments(
            self.loss_grads + other.loss_grads, self.activations + other.activations
        )

    def bases(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the eigenvectors of both as columns, those of the largest eigenvalues first:
        [C, C] and [D, D] float32.

        The largest entry of each column is positive, so that signs do not depend on the library.
        """
        return _eigenvectors(self.loss_grads), _eigenvectors(self.activations)


def _eigenvectors(moments: np.ndarray) -> np.ndarray:
    vectors = np.linalg.eigh(moments)[1][:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return (vectors * np.where(largest < 0, -1.0, 1.0)).astype(np.float32)


def energies(
    loss_grads: np.ndarray, activations: np.ndarray, bases: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Returns the sum over n examples, scaled [n, C] and [n, D], of each squared coordinate in the
    bases: [C, D] float64.
    """
    left, right = (
        np.square(factor @ basis, dtype=np.float64)
        for factor, basis in zip((loss_grads, activations), bases, strict=True)
    )
    return _product(left, right)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the sum over n examples of the outer products of rows [n, a] and [n, b]: [a, b]
    float64.

    It multiplies in float32, which is twice as fast, after scaling that keeps it in range. Rounding
    may sway the choice of bases and coordinates, but does not round what is projected onto them.
    """
    scales = [float(np.abs(side).max(initial=0)) or 1.0 for side in (left, right)]
    scaled_left, scaled_right = (
        (side / scale).astype(np.float32) for side, scale in zip((left, right), scales, strict=True)
    )
    return (scaled_left.T @ scaled_right).astype(np.float64) * (scales[0] * scales[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Strongest:
    """The rows with the highest self-influence of a part of a set; parts are added up with `+`.

    A sample of them tells how well a projection finds the strongest pairs, which are nearly all
    among them; a random sample would tell little.

    Attributes:
        rows: [m] int64, rows of the set, ascending.
        strengths: [m] float64.
        limit: m is at most this.
    """

    rows: np.ndarray
    strengths: np.ndarray
    limit: int = SAMPLE

    @staticmethod
    def of(
        features: Features, learning_rates: Sequence[float], first: int, limit: int = SAMPLE
    ) -> Strongest:
        """Returns the strongest of examples that follow each other from row `first` on."""
        rows = np.arange(first, first + len(features))
        return Strongest(rows, self_influence(features, learning_rates), limit)._cut()

    def __add__(self, other: Strongest) -> Strongest:
        return Strongest(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.strengths, other.strengths]),
            self.limit,
        )._cut()

    def _cut(self) -> Strongest:
        kept = np.lexsort((self.rows, -self.strengths))[: self.limit]
        kept = kept[np.argsort(self.rows[kept])]
        return Strongest(self.rows[kept], self.strengths[kept], self.limit)


@dataclasses.dataclass(frozen=True, eq=False)
class Measurements:
    """All measurements of a set that `methods.fit` needs.

    Attributes:
        bases: of each checkpoint, [C, C] and [D, D] float32.
        energies: in these bases, of each checkpoint [C, D] float64.
        sample: the features of the strongest records.
    """

    bases: list[tuple[np.ndarray, np.ndarray]]
    energies: list[np.ndarray]
    sample: Features

    @staticmethod
    def of(features: Features, scaling: Scaling) -> Measurements:
        """Measures features in memory; `transforms.vectors.fit` measures a set of files."""
        scaled = scaling.loss_grads(features)
        bases = [
            SecondMoments.of(scaled[:, t], features.activations[:, t]).bases()
            for t in range(scaled.shape[1])
        ]
        measured = [
            energies(scaled[:, t], features.activations[:, t], pair) for t, pair in enumerate(bases)
        ]
        strongest = Strongest.of(features, scaling.learning_rates, 0)
        return Measurements(bases, measured, features.take(strongest.rows))
