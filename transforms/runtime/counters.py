"""Counters that a person can watch: a Beam counter, and beside it the same number in this process.

Beam's in-process runner tells nothing while it runs, so a terminal cannot ask it how far it is.
What the steps count is therefore also kept here, behind a lock, for the thread that draws the
progress. On other runners the numbers in this process stay at zero and the Beam counters are what
is asked.
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
    """The Beam counter; to make it takes longer than to count with it."""
    return Metrics.counter(NAMESPACE, name)


def held(work: Callable[..., _R], *args: object) -> tuple[_R, Mapping[str, int]]:
    """Calls what counts in a thread of its own; gives its result and its counts, since Beam knows
    only of those of a step's own thread.
    """
    _thread.counts = counts = Counter[str]()
    try:
        return work(*args), counts
    finally:
        del _thread.counts


def snapshot() -> dict[str, int]:
    """What this process has counted since `reset`, by counter name."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Forgets this process's counts, before a new run."""
    with _lock:
        _counts.clear()
