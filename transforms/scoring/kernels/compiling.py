"""How the compiled loops are compiled, and where their machine code is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compiles a function that Python calls: without Python's lock, and kept where it can be."""
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # No directory to keep compiled code in.
            return numba.njit(**options)(function)

    return decorate


def inlined(**options: Any) -> Callable[[Callable], Callable]:
    """For what compiled functions alone call: to take its arguments from Python would be most of
    what there is to compile.
    """
    return numba.njit(
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, **options
    )
