"""Weights of the positions of an example whose loss is a mean or a sum over them."""

from __future__ import annotations

import numpy as np


def position_weights(counted: np.ndarray, mean: bool) -> np.ndarray:
    """What an example's loss multiplies the losses of its positions with, as Keras reduces a batch
    of this one example.

    Args:
        counted: `[n, P, T]` whether a position is neither masked, at checkpoint t, nor ignored by
            the loss.
        mean: whether the loss is the mean of those that count, or their sum.

    Returns:
        `[n, P, T]` float64, 0 for those that do not count.
    """
    numbers = counted.sum(axis=1, keepdims=True) if mean else np.ones((1, 1, 1), np.int64)
    return counted / np.maximum(numbers, 1)
