"""Directions of activations: how alike two examples are to the model, whatever their labels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """The centres from which activations are directions.

    The similarity of two examples is the mean over the checkpoints of the cosine of `h_t −
    centre_t`, from −1 to 1. Without a centre any two examples would be alike, by what all
    activations share after a ReLU.

    Attributes:
        centres: [T, D−1] float64, the mean activations at each checkpoint, without the trailing 1.
    """

    centres: np.ndarray

    def vectors(self, activations: np.ndarray) -> np.ndarray:
        """Returns unit vectors [n, T·(D−1)] float32 whose dot products are similarities.

        `activations` are [n, T, D] or, without the trailing 1, [n, T, D−1]. At a checkpoint where
        an activation equals the centre it has no direction: that part of its vector is 0.
        """
        moved = activations[:, :, : self.centres.shape[1]].astype(np.float64) - self.centres
        lengths = np.sqrt(np.square(moved).sum(axis=2, keepdims=True))
        unit = np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 0) / math.sqrt(
            len(self.centres)
        )
        return unit.reshape(len(unit), -1).astype(np.float32)


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the similarities of n pairs of vectors [n, d]: [n] float64, at most 1."""
    return np.minimum((first.astype(np.float64) * second).sum(axis=1), 1.0)
