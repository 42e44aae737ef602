"""Sums whose bits are the same on every machine.

A library's sum or dot product adds in an order that depends on the processor, the array's shape and the number of threads. Here the
order is written down: the second half of the terms is added to the first half until one is left. Each addition is one IEEE 754
operation on float64, so equal terms give equal bits everywhere, and the error grows with log2(n) only.
"""

from __future__ import annotations

import numpy as np


def fold_sum(terms: np.ndarray) -> np.ndarray:
    """Sums float64 `terms` [..., n] over their last axis, in the module's order; uses `terms` as its scratch space.

    Returns an array [...]; zeros where n is 0.
    """
    n = terms.shape[-1]
    if n == 0:
        return np.zeros(terms.shape[:-1])
    while n > 1:
        half = (n + 1) // 2
        terms[..., : n - half] += terms[..., half:n]
        n = half
    return terms[..., 0]


def norms(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norms, in float64, of `vectors` [..., n] of any float type."""
    return np.sqrt(fold_sum(np.square(vectors, dtype=np.float64)))
