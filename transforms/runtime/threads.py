"""Calls in threads, with results in the order of the calls.

A step of a fused chain is called with one element after the other, in one thread. Calls that it
hands to threads go on while the steps before and after it work. It pays where they release the
interpreter lock: TensorFlow's functions, hashing, reading and writing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from transforms.runtime import counters


class Threads:
    """Calls under way in threads. Up to `waiting` of them go on before the oldest result is waited
    for; their counts are added when their results are yielded.
    """

    def __init__(self, threads: int, waiting: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._waiting = waiting
        self._pending: deque[Future[Any]] = deque()

    def call(self, work: Callable[..., Any], *args: Any) -> Iterator[Any]:
        """Begins a call; yields finished results of earlier calls, in order, and waits for the
        oldest where too many calls are under way.
        """
        self._pending.append(self._pool.submit(counters.call_counted, work, *args))
        while self._pending and (len(self._pending) > self._waiting or self._pending[0].done()):
            yield self._next()

    def rest(self) -> Iterator[Any]:
        """Yields the results of all calls under way, in order."""
        while self._pending:
            yield self._next()

    def close(self) -> None:
        """Waits for the calls under way, and drops their results."""
        self._pool.shutdown()

    def _next(self) -> Any:
        result, counts = self._pending.popleft().result()
        for name, n in counts.items():
            counters.add(name, n)
        return result
