"""Counters that a person can watch: Beam counters, and the same numbers in this process.

Beam's in-process runner gives no counters while it runs, so a terminal cannot ask it for progress.
The counts of steps are therefore also kept here, behind a lock, for the thread that draws the
progress. On other runners the numbers in this process stay at zero, and the Beam counters are read.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from apache_beam.metrics import Metrics

NAMESPACE = "tracin"

_lock = threading.Lock()
_counts: Counter[str] = Counter()
_thread = threading.local()

_R = TypeVar("_R")


def add(name: str, n: int = 1) -> None:
    """Adds `n` to the Beam counter `name` and to this process's copy of it."""
    if (counts := getattr(_thread, "counts", None)) is not None:
        counts[name] += n
        return
    _counter(name).inc(n)
    with _lock:
        _counts[name] += n


@functools.cache
def _counter(name: str) -> Any:
    """Returns the Beam counter; making one takes longer than counting with it."""
    return Metrics.counter(NAMESPACE, name)


def call_counted(work: Callable[..., _R], *args: object) -> tuple[_R, Mapping[str, int]]:
    """Calls a function that counts; returns its result and its counts, without adding them.

    For threads of a step: Beam attributes a count to the step in whose own thread it is added.
    """
    _thread.counts = counts = Counter[str]()
    try:
        return work(*args), counts
    finally:
        del _thread.counts


def snapshot() -> dict[str, int]:
    """Returns the counts of this process since `reset`, by counter name."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Sets the counts of this process to zero, before a new run."""
    with _lock:
        _counts.clear()
