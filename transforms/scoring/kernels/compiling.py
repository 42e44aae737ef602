"""Compilation of loops, and the directory of their machine code.

Numba keys machine code by the file of the function that Python calls. But that function inlines
functions and constants of other files, so that an edit of another file would leave stale machine
code. Therefore machine code is kept in a directory whose name holds a digest of all sources that
compiled code inlines.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llvmlite
import numba
import xxhash

_HERE = pathlib.Path(__file__).resolve().parent

# Files whose functions and constants compiled code inlines; `gradients` compiles loops of its own.
SOURCES: tuple[pathlib.Path, ...] = (
    *sorted(_HERE.glob("*.py")),
    _HERE.parent / "gradients.py",
    _HERE.parents[1] / "core" / "summation.py",
)

# Directories of machine code that are kept beside a new one, the last used: enough for a few
# checkouts and environments that share a cache.
KEPT = 4

_PREFIX = "tracin-kernels-"


def source_digest(sources: Sequence[pathlib.Path] = SOURCES) -> str:
    """Returns a digest of source files and of the compiler's versions, which code is kept under."""
    digest = xxhash.xxh3_128(f"{numba.__version__} {llvmlite.__version__}".encode())
    for source in sources:
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def cache_directory(candidates: Sequence[pathlib.Path], digest: str) -> pathlib.Path | None:
    """Makes the directory for machine code of a digest in the first of the candidates that can be
    written; returns None where none can.

    A directory that is new takes the place of older ones: the last used are kept.
    """
    for candidate in candidates:
        directory = candidate / f"{_PREFIX}{digest}"
        try:
            is_new = not directory.exists()
            directory.mkdir(parents=True, exist_ok=True)
            os.utime(directory)
        except OSError:
            continue
        if os.access(directory, os.W_OK):
            if is_new:
                _remove_old(directory)
            return directory
    return None


def _remove_old(directory: pathlib.Path) -> None:
    """Removes older siblings but the last used. A process that loads from one compiles anew."""
    pattern = re.compile(re.escape(_PREFIX) + "[0-9a-f]{32}")
    with contextlib.suppress(OSError):
        siblings = [
            (path.stat().st_mtime, path)
            for path in directory.parent.iterdir()
            if pattern.fullmatch(path.name) and path != directory
        ]
        for _, path in sorted(siblings, reverse=True)[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def _candidates() -> list[pathlib.Path]:
    """Returns the user's choice; else the package's own directory, or the user's cache directory
    where the package is installed for all.
    """
    if numba.config.CACHE_DIR:
        return [pathlib.Path(numba.config.CACHE_DIR)]
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [_HERE / "__pycache__", pathlib.Path(user) / "tracin-beam"]


_DIRECTORY = cache_directory(_candidates(), source_digest())


@contextlib.contextmanager
def _kept_in(directory: pathlib.Path) -> Iterator[None]:
    """Lets Numba keep the machine code of functions that are decorated meanwhile in a directory."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(directory)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compiles a function that Python calls: it runs without Python's lock, and its machine code is
    kept where a directory for it can be written.
    """
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}

    def decorate(function: Callable) -> Callable:
        if _DIRECTORY is None:
            return numba.njit(**options)(function)
        with _kept_in(_DIRECTORY):
            return numba.njit(cache=True, **options)(function)

    return decorate


def inlined(**options: Any) -> Callable[[Callable], Callable]:
    """Compiles a function that only compiled functions call, without the code that takes its
    arguments from Python: that would be most of the code to compile.
    """
    return numba.njit(
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, **options
    )
