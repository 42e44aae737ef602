"""How far float32 arithmetic can be from the canonical score: the proven margins of the search.

The margin of a float32 product of all factors. Let `n_t = √η_t ‖δ_t‖ ‖ĥ_t‖` and `N² = Σ_t n_t²`
(the self-influence). Activations are scaled to length 1, and loss gradients to `n_t` over a scale
that is no smaller, so that all factors are at most 1 and nothing overflows. With `u = 2⁻²⁴`, a
float32 dot product of n terms in any order, of factors rounded once, is off by at most `γ(n + 3)
‖x‖ ‖y‖`, `γ(m) = m u / (1 − m u)` (Higham, Accuracy and Stability of Numerical Algorithms, section
3.1).

Sums are cut into parts of at most `PART` terms, which are added up in turn. So a term goes through
the additions of its part, and one for each part: `s` in all for the loss gradients. Each part of a
product of activations is multiplied by that of the loss gradients and added to the score, which
takes as many additions as all checkpoints have parts: `r` in all, a part's own included. By
Cauchy–Schwarz, part by part, the errors add up to at most `γ(s + r + 8) Σ_t n_t n'_t ≤ γ(s + r + 8)
N N'`. Where a factor or a product underflows, or is flushed to zero, each term is off by at most
2⁻¹²⁵ more.
"""

from __future__ import annotations

import numpy as np

from transforms.core.summation import PART


def product_margin(checkpoints: int, outputs: int, units: int) -> float:
    """Returns the proven error of a float32 score over `N N'`, for T checkpoints, C outputs and D
    units.

    The error of the canonical score itself and underflow are included.

    Raises:
        ValueError: there are so many terms that float32 proves nothing.
    """
    chains = sum(
        min(PART, n) + times * -(-n // PART) for n, times in ((outputs, 1), (units, checkpoints))
    )
    return _gamma(chains + 8) + checkpoints * (outputs + units + 2) * 2.0**-124 + 1e-11


def bound_margin(checkpoints: int, outputs: int) -> float:
    """Returns the proven error of a float32 bound by loss gradients over `N N'`.

    A bound is a sum over checkpoints of a dot product of at most C terms, plus a product of norms,
    each at most `n_t n'_t`; four operations follow.

    Raises:
        ValueError: there are so many terms that float32 proves nothing.
    """
    return 2 * _gamma(outputs + checkpoints + 12) + checkpoints * (outputs + 4) * 2.0**-124 + 1e-11


def sketch_error(directions: int, units: int) -> float:
    """Returns the error that squared lengths outside of sketches are enlarged by, so that they
    cover all errors of sketches in float32.

    A sketch has R coordinates of a vector ĥ of length 1 in directions v_r, all of them rounded
    once, each a sum of D terms in parts: off by `e_r ≤ γ(s + 4)`, together `ε ≤ √R γ(s + 4)`. So a
    product of two sketches is off by at most `2 ε + ε²`, and its float32 sum by `γ(R + 6)` more,
    the operations that follow included. The squared length outside, 1 less that of the sketch, is
    off by `2 ε + ε²`. Added to two squared lengths a and b, an error e is covered by their product:
    `√((a + e) (b + e)) ≥ √(a b) + e`.

    Raises:
        ValueError: there are so many terms that float32 proves nothing.
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
