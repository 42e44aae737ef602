"""Tensor sketches of outer products (Pham and Pagh 2013)."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """The hashes of a tensor sketch: the bin that each entry is added to, and its sign.

    Attributes:
        size: numbers of a sketch.
        loss_grad_bins, loss_grad_signs: [T, C] int32 and float32.
        activation_bins, activation_signs: [T, D] likewise.
    """

    size: int
    loss_grad_bins: np.ndarray
    loss_grad_signs: np.ndarray
    activation_bins: np.ndarray
    activation_signs: np.ndarray

    @staticmethod
    def draw(
        rng: np.random.Generator, size: int, checkpoints: int, outputs: int, units: int
    ) -> Sketch:
        """Draws random hashes. Those of the checkpoints are independent, so that one sketch can be
        of the sum of all.
        """

        def bins(width: int) -> np.ndarray:
            return rng.integers(0, size, (checkpoints, width), dtype=np.int32)

        def signs(width: int) -> np.ndarray:
            return rng.integers(0, 2, (checkpoints, width)).astype(np.float32) * 2 - 1

        return Sketch(size, bins(outputs), signs(outputs), bins(units), signs(units))

    def spectrum(self, t: int, loss_grads: np.ndarray, activations: np.ndarray) -> np.ndarray:
        """Returns the Fourier transforms of the sketches of n outer products of [n, C] and [n, D]
        at checkpoint t: [n, size / 2 + 1] complex.
        """
        return np.fft.rfft(
            _count_sketch(loss_grads, self.loss_grad_bins[t], self.loss_grad_signs[t], self.size)
        ) * np.fft.rfft(
            _count_sketch(activations, self.activation_bins[t], self.activation_signs[t], self.size)
        )

    def inverse(self, spectrum: np.ndarray) -> np.ndarray:
        """Returns the sketches [n, size] float64 of Fourier transforms."""
        return np.fft.irfft(spectrum, self.size)


def _count_sketch(
    entries: np.ndarray, bins: np.ndarray, signs: np.ndarray, size: int
) -> np.ndarray:
    """Adds the signed entries [n, w] up by bin: [n, size] float64."""
    order = np.argsort(bins, kind="stable")
    used, starts = np.unique(bins[order], return_index=True)
    sums = np.zeros((len(entries), size))
    sums[:, used] = np.add.reduceat(
        entries[:, order].astype(np.float64) * signs[order], starts, axis=1
    )
    return sums
