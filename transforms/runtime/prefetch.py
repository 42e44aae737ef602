"""Elements that a thread produces ahead of their use.

It pays where producer and user release the interpreter lock: reading, TensorFlow's operations,
NumPy on large arrays.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

_E = TypeVar("_E")


def prefetch(elements: Iterator[_E], depth: int = 2) -> Generator[_E, None, None]:
    """Yields `elements`; a thread produces up to `depth` of them before they are asked for.

    Close the generator (`contextlib.closing`) where a loop over it may end early.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                # Room first: an element that waits for its queue would be one more in memory.
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
