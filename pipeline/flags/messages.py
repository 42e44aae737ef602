"""Messages of the library in the words of the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from pipeline.flags import options
from transforms.core.errors import SETTING


def with_flags(message: str) -> str:
    """Returns a message with `setting` and `setting=value` as `--flag` and `--flag=value`."""
    flags = _flags()

    def flag(match: re.Match[str]) -> str:
        name = flags.get(match[1])
        return f"{name}{match[2] or ''}" if name else match[0]

    return SETTING.sub(flag, message)


@functools.cache
def _flags() -> Mapping[str, str]:
    """By setting its flag, of all commands."""
    actions = (
        action for command in options.COMMANDS for action in options.parser(command)._actions
    )
    return {action.dest: action.option_strings[0] for action in actions if action.option_strings}
