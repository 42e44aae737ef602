"""Directions of activations: how alike two examples are to the model, whatever their labels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """What makes activations directions.

    Attributes:
        centres: [T, D−1] float64, the mean activations at each checkpoint, without the trailing 1.
    """

    centres: np.ndarray

    def vectors(self, activations: np.ndarray) -> np.ndarray:
        """Unit vectors [n, T·(D−1)] float32 whose dot product is the similarity; of activations [n,
        T, D] or [n, T, D−1].

        What lies at the centre of a checkpoint has no direction there: its part is zero.
        """
        moved = activations[:, :, : self.centres.shape[1]].astype(np.float64) - self.centres
        lengths = np.sqrt(np.square(moved).sum(axis=2, keepdims=True))
        unit = np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 0) / math.sqrt(
            len(self.centres)
        )
        return unit.reshape(len(unit), -1).astype(np.float32)
