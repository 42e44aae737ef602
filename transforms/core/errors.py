"""The one exception for errors that a user can mend: wrong settings, bad files, bad data."""

from __future__ import annotations

import re

# A setting in a message, and perhaps its value.
SETTING = re.compile(r"`([a-z][a-z0-9_]*)(=[^`]*)?`")


class InputError(ValueError):
    """A setting, a file or data of the user's cannot be used.

    The message is one line: what was expected, what was found, where, and what to do. It names
    settings, the fields of configurations, in backticks: `k`, or `k=0` with a value. Line breaks
    of quoted texts become spaces.

    The command line prints the line alone, with settings as flags and without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    @property
    def field(self) -> str | None:
        """The first setting that the message names, which is the one to change; None without
        any.
        """
        match = SETTING.search(str(self))
        return match[1] if match else None


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message without its full stop, with the next line where
    the first only announces it.
    """
    # TensorFlow puts the name of a graph's node in front, Keras prints in bold.
    text = re.sub(r"\x1b\[\d*m|^\{\{.*?\}\}", "", str(error).strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announced = lines[0].endswith(":") or lines[0].startswith("Exception encountered when calling")
    return " ".join(lines[:2] if announced else lines[:1]).rstrip(". ")
