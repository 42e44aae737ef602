"""Two things at once: what produces elements works ahead, in a thread, of what uses them.

It pays where both release the interpreter lock: reading, TensorFlow's operations, NumPy on large arrays.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

_E = TypeVar("_E")


def prefetch(elements: Iterator[_E], depth: int = 2) -> Iterator[_E]:
    """Yields `elements`, computed up to `depth` ahead by a thread, so that reading overlaps with what is done to each."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for element in elements:
                if not put((True, element)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stopped.set()
        thread.join()
