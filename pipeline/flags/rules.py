"""The rules between a command's flags: what excludes, what needs, and what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.flags.declarations.commands import COMMANDS
from pipeline.flags.declarations.flag import Flag


def mistake(command: str, flags: Sequence[Flag], args: argparse.Namespace) -> str | None:
    """Returns the first broken rule as one line; None where all hold.

    Args:
        command: the command.
        flags: its flags.
        args: their parsed values. A flag counts as given if its value is not its default.
    """
    given = {flag.name for flag in flags if getattr(args, flag.setting) != flag.default}
    known = {flag.name for flag in flags}
    return (
        _excluded(flags, given)
        or _unmet(flags, given, known)
        or _missing(command, given)
        or _table_without_bucket(args)
    )


def _excluded(flags: Sequence[Flag], given: set[str]) -> str | None:
    for flag in flags:
        for rule in flag.excludes if flag.name in given else ():
            for other in flags:
                if other.name in given and other.name in rule.flags:
                    return rule.message.format(flag=flag.option, other=other.option)
    return None


def _unmet(flags: Sequence[Flag], given: set[str], known: set[str]) -> str | None:
    for flag in flags:
        for rule in flag.needs if flag.name in given else ():
            if known & set(rule.flags) and not given & set(rule.flags):
                return f"{flag.option} {rule.message}"
    return None


def _missing(command: str, given: set[str]) -> str | None:
    """Names what is missing of the alternative that the user began, or else all alternatives."""
    alternatives = COMMANDS[command].alternatives
    if not alternatives or any(given.issuperset(names) for names in alternatives):
        return None
    begun = [names for names in alternatives if given & set(names)]
    if begun:
        return "missing " + ", ".join(f"--{name}" for name in begun[0] if name not in given)
    *others, last = (
        COMMANDS[command].between.join(f"--{name}" for name in names) for names in alternatives
    )
    return f"missing {', '.join(others)}, or {COMMANDS[command].before_last}{last}"


def _table_without_bucket(args: argparse.Namespace) -> str | None:
    output = getattr(args, "output", None)
    if getattr(args, "output_table", None) and output and not output.startswith("gs://"):
        return (
            "--output_table needs an --output on gs://, where BigQuery reads the rows, found "
            f"{output!r}"
        )
    return None
