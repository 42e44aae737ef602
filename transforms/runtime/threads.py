"""Work that a step hands to threads, and whose results it hands on in order.

A step of a fused chain is called with one element after the other, in one thread. What it gives to
threads goes on while the steps before and after it work. It pays where that releases the
interpreter lock: TensorFlow's functions, hashing, reading and writing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from transforms.runtime import counters


class Threads:
    """Calls under way, of which up to `waiting` are not asked for their results; what they count is
    counted when they are.
    """

    def __init__(self, threads: int, waiting: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._waiting = waiting
        self._pending: deque[Future[Any]] = deque()

    def call(self, work: Callable[..., Any], *args: Any) -> Iterator[Any]:
        """Begins a call; yields results of earlier ones that are there, in order, and waits for
        some where too many are under way.
        """
        self._pending.append(self._pool.submit(counters.held, work, *args))
        while self._pending and (len(self._pending) > self._waiting or self._pending[0].done()):
            yield self._next()

    def rest(self) -> Iterator[Any]:
        """Yields the results of all calls that are under way, in order."""
        while self._pending:
            yield self._next()

    def close(self) -> None:
        """Waits for what is under way, whose results nobody asks for any more."""
        self._pool.shutdown()

    def _next(self) -> Any:
        result, counts = self._pending.popleft().result()
        for name, n in counts.items():
            counters.add(name, n)
        return result
