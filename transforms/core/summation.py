"""Sums whose bits are the same on every machine.

A library's sum or dot product adds in an order that depends on the processor, the array's shape and
the number of threads. Here the order is written down: term i is added to running sum `i mod LANES`,
and the running sums are folded, the second half onto the first, until one is left. Each addition is
one IEEE 754 operation on float64, so equal terms give equal bits everywhere, and processors can do
all lanes at once.
"""

from __future__ import annotations

import math

import numpy as np

LANES = 16

# Terms of a float32 sum before it is added to another. The proven margin grows with the length of a
# sum, the work with the number of sums.
PART = 352

# The squares of so many rows, 4 KiB for each of their columns, stay in a processor's cache until
# they are added.
_ROWS = 512


def lane_sum(terms: np.ndarray) -> np.ndarray:
    """Returns the sums of float64 `terms` [..., n] over their last axis, in the module's order:
    [...] float64; zeros where n is 0.
    """
    n = terms.shape[-1]
    # The lanes are the first axis in memory. Where terms are laid out like that too, long rows of
    # them are added, not sixteen numbers at a time.
    lanes = np.moveaxis(np.zeros((LANES, *terms.shape[:-1])), 0, -1)
    for start in range(0, n, LANES):
        lanes[..., : n - start] += terms[..., start : start + LANES]
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width:]
    return lanes[..., 0]


def norms(vectors: np.ndarray) -> np.ndarray:
    """Returns the Euclidean norms [...] float64 of `vectors` [..., n] of any float type."""
    shape, width = vectors.shape[:-1], vectors.shape[-1]
    rows = vectors.reshape(math.prod(shape), width)
    sums = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        terms = rows[start : start + _ROWS].T.astype(np.float64, order="C")
        sums[start : start + _ROWS] = lane_sum(np.square(terms, out=terms).T)
    return np.sqrt(sums).reshape(shape)
