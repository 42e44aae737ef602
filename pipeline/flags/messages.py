"""Messages of the library in the words of the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from pipeline.flags.declarations.commands import FLAGS
from transforms.core.errors import SETTING


def with_flags(message: str) -> str:
    """Returns a message with `setting` and `setting=value` as `--flag` and `--flag=value`."""
    options = _options()

    def flag(match: re.Match[str]) -> str:
        option = options.get(match[1])
        return f"{option}{match[2] or ''}" if option else match[0]

    return SETTING.sub(flag, message)


@functools.cache
def _options() -> Mapping[str, str]:
    """Returns the flag of each setting, and of each earlier name of one."""
    return {
        name: flag.option
        for flag in FLAGS
        if not flag.positional
        for name in (*flag.aliases, flag.setting)
    }
