"""How far float32 arithmetic can be from the canonical score: the proven margins of the search."""

from __future__ import annotations

import numpy as np

from transforms.core.summation import PART


def product_margin(checkpoints: int, outputs: int, units: int) -> float:
    """The proven error of a float32 score of scaled factors over `N N'`, that of the canonical
    score and underflow included.

    Raises:
        ValueError: for so many terms float32 proves nothing.
    """
    chains = sum(
        min(PART, n) + times * -(-n // PART) for n, times in ((outputs, 1), (units, checkpoints))
    )
    return _gamma(chains + 8) + checkpoints * (outputs + units + 2) * 2.0**-124 + 1e-11


def bound_margin(checkpoints: int, outputs: int) -> float:
    """The proven error of a float32 bound by loss gradients, likewise.

    A bound is a sum over checkpoints of a dot product of at most C terms, plus a product of norms,
    each at most `n_t n'_t`; four operations follow it.
    """
    return 2 * _gamma(outputs + checkpoints + 12) + checkpoints * (outputs + 4) * 2.0**-124 + 1e-11


def sketch_error(directions: int, units: int) -> float:
    """What to add to the squared lengths of what is outside of sketches, so that they cover all
    errors of sketches in float32.

    A sketch has R coordinates of a vector ĥ of length 1 in directions v_r, all of them rounded
    once, each a sum of D terms in parts: off by `e_r ≤ γ(s + 4)`, together `ε ≤ √R γ(s + 4)`. So a
    product of two sketches is off by at most `2 ε + ε²`, and its float32 sum by `γ(R + 6)` more,
    the operations that follow included; and the squared length outside, 1 less that of the sketch,
    by `2 ε + ε²`. Added to two squared lengths a and b, an error e is covered by their product:
    `√((a + e) (b + e)) ≥ √(a b) + e`.
    """
    coordinates = np.sqrt(directions) * (
        _gamma(min(PART, units) + -(-units // PART) + 4) + units * 2.0**-124
    )
    return float(2 * (2 * coordinates + coordinates**2) + _gamma(directions + 6))


def _gamma(operations: int) -> float:
    terms = operations * 2.0**-24
    if terms >= 0.5:
        raise ValueError(f"{operations} float32 operations are too many to search by")
    return terms / (1 - terms)
