"""What a score is: the influence of pairs by its definition, and how far float32 arithmetic can be
from it.

The canonical score is computed in float64 in an order of additions that is written down, so it is a
function of two records and nothing else. It decides; float32 bounds and products only say which
pairs it need not be computed for.

The margin of a float32 product of all factors. Let `n_t = √η_t ‖δ_t‖ ‖ĥ_t‖` and `N² = Σ_t n_t²`
(the self-influence). Activations are scaled to length 1 and loss gradients to `n_t` over a unit
that is no smaller, so that all factors are at most 1 and nothing overflows. With `u = 2⁻²⁴`, a
float32 dot product of n terms in any order, of factors rounded once, is off by at most `γ(n + 3)
‖x‖ ‖y‖`, `γ(m) = m u / (1 − m u)` (Higham, Accuracy and Stability of Numerical Algorithms, section
3.1). Sums are cut into parts of at most `PART` terms, which are added up one after the other, so
that no term goes through more additions than a part has, and one for each part: `s` in all for the
loss gradients. Each part of a product of activations is multiplied by that of the loss gradients
and added to the score, which takes as many additions as all checkpoints have parts: `r` in all, a
part's own included. By Cauchy–Schwarz, part by part, the errors add up to at most `γ(s + r + 8) Σ_t
n_t n'_t ≤ γ(s + r + 8) N N'`. Where a factor or a product underflows, or is flushed to zero, each
term is off by at most 2⁻¹²⁵ more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from transforms.core.features import Features
from transforms.core.summation import lane_sum

NORMALIZATIONS = ("none", "cosine", "relatif")

# Numbers of the pairs that are scored at once: half a megabyte of float64, which a processor's
# cache holds.
_PAIR_SCRATCH = 1 << 16


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What turns features into scores.

    Attributes:
        learning_rates: η of each of T checkpoints, all positive.
        k: how many proponents and opponents of each test example are wanted.
        normalize: `none`; `cosine`, divided by both examples' √self-influence; or `relatif`, by the
            training example's alone.
    """

    learning_rates: tuple[float, ...]
    k: int
    normalize: str = "none"

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(
                f"normalize is {self.normalize!r}, expected one of {', '.join(NORMALIZATIONS)}"
            )

    @property
    def divides_train(self) -> bool:
        """Whether a score is divided by the training example's √self-influence."""
        return self.normalize != "none"

    @property
    def divides_test(self) -> bool:
        """Whether a score is divided by the test example's √self-influence."""
        return self.normalize == "cosine"


def self_influence(features: Features, learning_rates: Sequence[float]) -> np.ndarray:
    """Returns the influence of n examples on themselves, `Σ_t η_t ‖δ_t‖² ‖ĥ_t‖²`: [n] float64.

    Args:
        features: features of the n examples.
        learning_rates: η of each checkpoint.
    """
    total = np.zeros(len(features))
    for t, rate in enumerate(learning_rates):
        total += rate * (
            np.square(features.loss_grad_norms[:, t]) * np.square(features.activation_norms[:, t])
        )
    return total


def canonical_scores(
    test: Features, train: Features, tests: np.ndarray, trains: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """Returns the scores of P pairs, `Σ_t η_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)`, normalised: [P] float64.

    This is the definition; `kernels` computes the same bits faster.

    Args:
        test: features of test examples.
        train: features of training examples.
        tests: [P] row numbers in `test`.
        trains: [P] row numbers in `train`.
        scoring: learning rates and normalisation.
    """
    scores = np.zeros(len(tests))
    width = test.loss_grads.shape[2] + test.activations.shape[2]
    step = max(1, _PAIR_SCRATCH // width)
    for start in range(0, len(tests), step):
        i, j = tests[start : start + step], trains[start : start + step]
        total = np.zeros(len(i))
        for t, rate in enumerate(scoring.learning_rates):
            # Products of float32 are exact in float64.
            loss_grads = lane_sum(
                np.multiply(test.loss_grads[i, t], train.loss_grads[j, t], dtype=np.float64)
            )
            activations = lane_sum(
                np.multiply(test.activations[i, t], train.activations[j, t], dtype=np.float64)
            )
            total += rate * (loss_grads * activations)
        scores[start : start + step] = total
    divisor = np.ones(len(tests))
    if scoring.divides_train:
        divisor *= np.sqrt(self_influence(train, scoring.learning_rates))[trains]
    if scoring.divides_test:
        divisor *= np.sqrt(self_influence(test, scoring.learning_rates))[tests]
    return np.divide(scores, divisor, out=np.zeros_like(scores), where=divisor > 0)
