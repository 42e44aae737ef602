"""The one exception for what a user can mend: bad flags, bad files, bad data."""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave cannot be used.

    Its message is one line that says what was expected, what was found, where, and what to do. The command line prints that line
    alone, without a traceback: with exit status 2 if nothing had been started, with 1 if it ended a run. Line breaks of texts that it
    quotes become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
