"""Two things at once: what produces elements works ahead, in a thread, of what uses them.

It pays where both release the interpreter lock: reading, TensorFlow's operations, NumPy on large
arrays.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

_E = TypeVar("_E")


def prefetch(elements: Iterator[_E], depth: int = 2) -> Generator[_E, None, None]:
    """Yields `elements`, of which a thread makes up to `depth` before they are asked for.

    Close it (`contextlib.closing`) where it may be left early.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                # Room first: an element that waits to be queued would be one more in memory.
                room.acquire()
                if stopped.is_set():
                    return
                ready.put((True, next(elements)))
        except StopIteration:
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            room.release()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stopped.set()
        room.release()
        thread.join()
