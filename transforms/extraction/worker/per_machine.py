"""One object for all worker processes of a machine: the first makes it, the others call it there.

Beam's `MultiProcessShared` finds the process and carries the calls. It leaves it to its users that
the process can die: whoever notices makes the object anew, or finds that another process has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from apache_beam.utils.multi_process_shared import MultiProcessShared

from transforms.storage import staging

# What a call raises if the process that holds the object has died.
_GONE = (EOFError, ConnectionError)
# Calls before giving up: a call that kills every process that holds the object must not kill all
# processes of the machine, one after the other.
_ATTEMPTS = 4


class OnePerMachine:
    """A callable that exists once per machine.

    Calls from other processes are pickled, and so are their results.
    """

    def __init__(self, make: Callable[[], Callable[..., Any]], tag: str) -> None:
        """Prepares the call; `make` does the same in all processes with the same `tag`."""
        self._make = make
        self._tag = tag
        # The callable, or Beam's proxy of it in another process.
        self._callable: Any = None

    def __call__(self, *args: Any) -> Any:
        """Calls the callable in the process that holds it.

        Raises:
            ConnectionError, EOFError: that process has died, and so have the next ones.
        """
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                if self._callable is None:
                    self._callable = self._acquire()
                return self._callable(*args)
            except _GONE as error:
                self._callable = None
                if not attempts_left:
                    raise
                logging.getLogger(__name__).warning(
                    "the process that held the checkpoints is gone (%r): acquiring them again",
                    error,
                )
        raise AssertionError("unreachable")

    def _acquire(self) -> Any:
        directory = os.path.join(staging.private_directory(), "shared")
        os.makedirs(directory, exist_ok=True)
        return MultiProcessShared(self._make, self._tag, path=directory).acquire()
