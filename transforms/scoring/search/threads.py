"""Compiled loops on all cores."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Threads:
    """A thread for each core, for compiled loops, which do not hold Python's lock.

    Attributes:
        count: number of threads.
    """

    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0))
        self._executor = concurrent.futures.ThreadPoolExecutor(self.count, "search")

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Returns the results of pieces of work, in order."""
        return self._executor.map(work, items)

    def share(self, n: int, work: Callable[[int, int], _Result]) -> list[_Result]:
        """Calls work for ranges, (first, stop), of n things; returns its results in order."""
        step = max(1, -(-n // (4 * self.count)))
        return list(self.map(lambda first: work(first, min(first + step, n)), range(0, n, step)))


@functools.cache
def threads() -> Threads:
    """Returns the threads of this process."""
    return Threads()
