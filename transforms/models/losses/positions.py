"""Weights of positions: how the loss of an example is made of the losses of its positions."""

from __future__ import annotations

import numpy as np


def position_weights(counted: np.ndarray, mean: bool) -> np.ndarray:
    """Returns the factor of each position's loss in its example's loss.

    The loss of an example is the mean or the sum over the positions that count, as Keras reduces a
    batch of this one example.

    Args:
        counted: `[n, P, T]`, whether a position is neither masked at checkpoint t nor ignored by
            the loss.
        mean: whether the loss is the mean over the positions that count, or their sum.

    Returns:
        `[n, P, T]` float64, 0 for positions that do not count.
    """
    numbers = counted.sum(axis=1, keepdims=True) if mean else np.ones((1, 1, 1), np.int64)
    return counted / np.maximum(numbers, 1)
