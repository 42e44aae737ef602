"""One object for all worker processes of a machine: the one that comes first makes it, the others
call it there.

Beam's `MultiProcessShared` finds the process and carries the calls. What it leaves to its users is
that the process can die: whoever notices makes the object anew, or finds that another has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from apache_beam.utils.multi_process_shared import MultiProcessShared

from transforms.storage import staging

# What a call raises whose process has died.
_GONE = (EOFError, ConnectionError)
# A call that kills every process that holds the object must not take the whole machine's, one after
# the other.
_ATTEMPTS = 4


class OnePerMachine:
    """A callable that is made once per machine; calls from other processes are pickled, and so are
    their results.
    """

    def __init__(self, make: Callable[[], Callable[..., Any]], tag: str) -> None:
        """`make` must do the same in all processes that share the `tag`."""
        self._make = make
        self._tag = tag
        self._found: Any = None

    def __call__(self, *args: Any) -> Any:
        """Calls the object where it is.

        Raises:
            ConnectionError, EOFError: its process has died, time after time.
        """
        for left in reversed(range(_ATTEMPTS)):
            try:
                if self._found is None:
                    self._found = self._acquire()
                return self._found(*args)
            except _GONE as error:
                self._found = None
                if not left:
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
