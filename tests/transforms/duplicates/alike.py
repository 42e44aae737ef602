"""Activations of which many are alike, and their similarities by the definition."""

from __future__ import annotations

import itertools

import numpy as np

from transforms.duplicates.directions import Directions
from transforms.duplicates.signatures import Signatures

CHECKPOINTS, UNITS, CLASSES = 3, 20, 4


def cosines(activations: np.ndarray) -> np.ndarray:
    """[n, n] by the definition."""
    moved = activations.astype(np.float64) - activations.astype(np.float64).mean(axis=0)
    unit = moved / np.linalg.norm(moved, axis=2, keepdims=True)
    return np.einsum("itd,jtd->ij", unit, unit) / activations.shape[1]


def centred(activations: np.ndarray) -> Directions:
    """Directions about the mean of all activations."""
    return Directions(activations.astype(np.float64).mean(axis=0))


def draw(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations [n, T, D] of which the second half is near, or equals, the first; and labels, of
    which most differ between the halves.
    """
    rng = np.random.default_rng(seed)
    first = np.maximum(rng.normal(size=(n // 2, CHECKPOINTS, UNITS)), 0)
    second = first + rng.normal(size=first.shape) * np.linspace(0, 0.3, n // 2)[:, None, None]
    second[: n // 10] = first[: n // 10]
    labels = rng.integers(0, CLASSES, n)
    return np.concatenate([first, second]).astype(np.float32), labels


def borders(n: int, files: int) -> np.ndarray:
    """Where n examples are cut into files."""
    return np.linspace(0, n, files + 1).astype(int)


def signatures_of(
    activations: np.ndarray, labels: np.ndarray, directions: Directions, files: int = 3
) -> list[Signatures]:
    """The signatures of each file of examples."""
    return [
        Signatures.of(i, activations[a:b], labels[a:b], directions)
        for i, (a, b) in enumerate(itertools.pairwise(borders(len(labels), files)))
    ]


def rows_of(records: np.ndarray, n: int, files: int = 3) -> np.ndarray:
    """The rows of record numbers among all n examples."""
    return borders(n, files)[records >> 32] + (records & 0xFFFFFFFF)
