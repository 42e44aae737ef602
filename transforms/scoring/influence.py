"""The definition of influence: the canonical score of a pair, its normalisations, self-influence.

The influence of a training example on a test example is `Σ_t η_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)`, over
checkpoints t (Pruthi et al., Estimating Training Data Influence by Tracing Gradient Descent, 2020,
for a last dense layer, whose gradient is δ ⊗ ĥ). The canonical score is this sum in float64, in an
order of additions that is written down (`core.summation`), so it is a function of two records and
nothing else. It alone decides which candidates are best; float32 bounds and products
(`error_bounds`) only spare computing it for most pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from transforms.core.features import Features
from transforms.core.summation import lane_sum

NORMALIZATIONS = ("none", "cosine", "relatif")

# Numbers that are multiplied at once: half a megabyte of float64, which a processor's cache holds.
_PAIR_SCRATCH = 1 << 16


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How features become scores, and how many of them count.

    Attributes:
        learning_rates: η of each of T checkpoints, all positive.
        k: number of proponents and of opponents of each test example.
        normalize: `none`; `cosine`, divided by √self-influence of both examples; or `relatif`, by
            that of the training example.

    Raises:
        ValueError: the normalisation is unknown.
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

    Raises:
        ValueError: there are not as many learning rates as checkpoints.
    """
    _check_rates(features, learning_rates)
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

    A score is 0 where it would be divided by 0. This is the definition; `search.layout.score_pairs`
    returns the same bits, faster.

    Args:
        test: features of the test examples.
        train: features of the training examples.
        tests: [P] rows of `test`, one for each pair.
        trains: [P] rows of `train`.
        scoring: learning rates and normalisation.

    Raises:
        ValueError: there are not as many learning rates as checkpoints.
    """
    for side in (test, train):
        _check_rates(side, scoring.learning_rates)
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


def _check_rates(features: Features, learning_rates: Sequence[float]) -> None:
    checkpoints = features.loss_grads.shape[1]
    if len(learning_rates) != checkpoints:
        raise ValueError(
            f"there are {len(learning_rates)} learning rates, and features of {checkpoints} "
            "checkpoints: give one for each"
        )
