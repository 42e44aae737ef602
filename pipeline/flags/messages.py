"""Messages of the library in the words of the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from pipeline.flags.declarations.commands import FLAGS
from transforms.core.errors import SETTING


def with_flags(message: str, command: str = "") -> str:
    """Returns a message with `setting` and `setting=value` as `--flag` and `--flag=value`.

    Args:
        message: the message of the library.
        command: the command that prints it, whose words without a flag are named, too.
    """
    options = _options(command)

    def flag(match: re.Match[str]) -> str:
        option = options.get(match[1])
        return f"{option}{match[2] or ''}" if option else match[0]

    return SETTING.sub(flag, message)


@functools.cache
def _options(command: str) -> Mapping[str, str]:
    """Returns the flag of each setting, and of each earlier name of a setting."""
    return {
        name: flag.value_name if flag.positional else flag.option
        for flag in FLAGS
        if not flag.positional or command in flag.commands
        for name in (*flag.aliases, flag.setting)
    }
