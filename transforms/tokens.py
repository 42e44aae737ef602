"""Models whose last dense layer works on each position of an example: every position that counts in the loss is a record of its own.

The gradient of an example's loss is the sum, over its positions, of the outer products `δ ⊗ h`, which is no outer product itself. The
records of its positions are, so the influence of an example on another is the sum of the scores of all pairs of their positions.
"""

from __future__ import annotations

import numpy as np

_SEPARATOR = b"@"


def record_id(example_id: bytes, position: int) -> bytes:
    """The id of the record of a position (counted from 0, row by row where there are several axes): `id@position`."""
    return b"%s%s%d" % (example_id, _SEPARATOR, position)


def example_of(record: bytes) -> bytes:
    """The id of the example that a record is a position of."""
    return record.rpartition(_SEPARATOR)[0]


def weights(counted: np.ndarray, mean: bool) -> np.ndarray:
    """What an example's loss multiplies the losses of its positions with, as Keras reduces a batch of this one example.

    Args:
        counted: `[n, P, T]` whether a position is neither masked, at checkpoint t, nor ignored by the loss.
        mean: whether the loss is the mean of those that count, or their sum.

    Returns:
        `[n, P, T]` float64, 0 for those that do not count.
    """
    numbers = counted.sum(axis=1, keepdims=True) if mean else np.ones((1, 1, 1), np.int64)
    return counted / np.maximum(numbers, 1)
