"""The loading of TensorFlow and Apache Beam: quietly, with a line for whoever waits.

This module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import importlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading(libraries: str) -> Iterator[None]:
    """Shows the libraries that the block imports, and hides what they print of themselves."""
    with _uncollected(), _announced(f"loading {libraries} …"), _quiet():
        yield


def load_tensorflow() -> None:
    """Imports TensorFlow, if it is installed, for a step of the graph that will read pictures.

    Loaded within the step, beside what is collected there, it takes seconds longer.
    """
    with loading("TensorFlow"), contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("tensorflow").config.list_physical_devices()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Exempts what the block makes from garbage collection, then and later.

    TensorFlow, Keras and Beam are very many objects that stay; passing over all of them takes
    seconds.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _announced(line: str) -> Iterator[None]:
    """Shows a line at a terminal while the block runs: seconds without a word feel like a fault."""
    if not sys.stderr.isatty():
        yield
        return
    print(line, end="", flush=True, file=sys.stderr)
    try:
        yield
    finally:
        print("\r\033[K", end="", flush=True, file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the complaints of TensorFlow's C++ libraries about a missing GPU, which they print
    before any log level counts.

    Where there is a GPU, their messages about it may matter.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if glob.glob("/dev/nvidia*"):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
