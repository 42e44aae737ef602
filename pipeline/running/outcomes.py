"""How a command ends: its exit status, and the one line for what the user can mend."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TypeVar

from pipeline.flags.messages import with_flags
from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.manifests import Manifest

_M = TypeVar("_M", bound=Manifest)


class Crossed(Exception):
    """A run did all it had to, and a number is above its threshold."""


class RunFailed(Exception):
    """A run was started and ended without a result; the message is the one line for the user."""


def exit_with(command: str, run: Callable[[], None]) -> int:
    """Runs a command's body; prints what it raises as one line on standard error.

    Returns:
        The exit status: 0 where it is done, 1 where a run failed, 2 where something that the user
        gave kept it from being started, 3 where it is done and a threshold is crossed at which it
        is to fail, 130 where the user stopped it.
    """
    try:
        run()
    except Crossed as error:
        return _end(command, with_flags(str(error), command), 3)
    except RunFailed as error:
        return _end(command, f"failed: {with_flags(str(error), command)}", 1)
    except InputError as error:
        return _end(command, with_flags(str(error), command), 2)
    except KeyboardInterrupt:
        return _end(command, "stopped", 130)
    return 0


def _end(command: str, message: str, status: int) -> int:
    print(f"tracin {command}: {message}", file=sys.stderr)
    return status


def input_error_message(error: BaseException) -> str | None:
    """Returns the message of the `InputError` that ended a run, out of the text that a runner made
    of it; None if it was another error.
    """
    if isinstance(error, InputError):
        text = str(error)
    else:
        # The traceback of the last exception of a chain comes last; exceptions that were handled
        # come before it.
        last = re.split(
            r"During handling of the above exception, another exception occurred", str(error)
        )[-1]
        messages = re.findall(
            r"^(?:\w+\.)*InputError: (.*)$", last.replace("\\n", "\n"), flags=re.MULTILINE
        )
        if not messages:
            return None
        text = messages[-1]
    return re.split(r" \[while running ", text)[0].strip()


def read_back(directory: str, kind: type[_M]) -> _M:
    """Reads the manifest that a run has committed.

    Raises:
        RunFailed: it is not there.
    """
    try:
        return manifests.read(directory, kind, "output")
    except InputError as error:
        raise RunFailed(str(error)) from error


def read_back_kind(directory: str, kind: str) -> Manifest:
    """Reads the manifest that a run has committed, of a directory of this kind.

    Raises:
        RunFailed: it is not there.
    """
    try:
        return manifests.read_kind(directory, "output", kind)
    except InputError as error:
        raise RunFailed(str(error)) from error
