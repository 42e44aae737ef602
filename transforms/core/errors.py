"""The one exception for what a user can mend: bad flags, bad files, bad data."""

from __future__ import annotations

import re


class InputError(ValueError):
    """Something that the user gave cannot be used.

    Its message is one line that says what was expected, what was found, where, and what to do. The command line prints that line
    alone, without a traceback: with exit status 2 if nothing had been started, with 1 if it ended a run. Line breaks of texts that it
    quotes become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def first_line(error: Exception) -> str:
    """Gives the first line of an error's message without its full stop, and the next if the first only announces it."""
    # TensorFlow puts the name of a graph's node in front, Keras prints in bold.
    text = re.sub(r"\x1b\[\d*m|^\{\{.*?\}\}", "", str(error).strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announced = lines[0].endswith(":") or lines[0].startswith("Exception encountered when calling")
    return " ".join(lines[:2] if announced else lines[:1]).rstrip(". ")
