"""The parser of each command, made from the declarations of its flags.

This module and all that it imports load nothing heavy, so that `--help` and mistakes in flags are
answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline.flags import dataflow, rules
from pipeline.flags.declarations.commands import COMMANDS, flags_of
from pipeline.flags.declarations.flag import Flag

_EPILOG = (
    "Any flag of Apache Beam may follow: --runner, --direct_num_workers, --project, --region, "
    "--temp_location, --sdk_container_image, …"
)

# How alike a flag of ours and an unknown one are for a misspelling, as difflib's ratio.
_MISSPELT = 0.85


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line and status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser(command: str, flags: Sequence[Flag] | None = None) -> Parser:
    """Returns the parser of a command's own flags, or of other `flags` in their place."""
    built = Parser(
        prog=f"tracin {command}",
        description=COMMANDS[command].summary.capitalize() + ".",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {"": built}
    for flag in flags_of(command) if flags is None else flags:
        if flag.group not in groups:
            groups[flag.group] = built.add_argument_group(flag.group)
        _add(groups[flag.group], flag)
    return built


def _add(group: argparse._ActionsContainer, flag: Flag) -> None:
    settings: dict[str, Any] = {
        "type": flag.kind.parse,
        "default": flag.default,
        "help": flag.text.replace("%", "%%"),
    }
    if flag.kind.choices:
        settings["choices"] = flag.kind.choices
    else:
        settings["metavar"] = flag.value_name
    if flag.positional:
        group.add_argument(flag.name, **settings)
        return
    if flag.kind.switch:
        settings |= {"nargs": "?", "const": True}
    group.add_argument(flag.option, dest=flag.setting, required=flag.required, **settings)


def parse(
    command: str, argv: Sequence[str], flags: Sequence[Flag] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command's own flags; returns their settings, and the words left for Beam.

    A word that is left and looks like one of our flags misspelt, or a Dataflow job that cannot be,
    ends the program with status 2. `flags` replaces the command's.
    """
    known = flags_of(command) if flags is None else flags
    own = parser(command, known)
    words = [_with_new_name(word, known) for word in argv]
    if any(flag.name == "labels" for flag in known):
        words = [_beams_labels(word) for word in words]
    args, left = own.parse_known_args(words)
    mistake = (
        _unexpected_word(left)
        or _misspelt(left, [flag.option for flag in known])
        or rules.mistake(command, known, args)
        or dataflow.mistake(left)
    )
    if mistake:
        own.error(mistake)
    return args, left


def _with_new_name(word: str, flags: Sequence[Flag]) -> str:
    """Replaces a flag's earlier name by its present one."""
    name, equals, value = word.partition("=")
    for flag in flags:
        if name in (f"--{alias}" for alias in flag.aliases):
            return f"{flag.option}{equals}{value}"
    return word


def _beams_labels(word: str) -> str:
    """Calls Beam's `--labels`, a job's labels, by its other name where a command has `--labels` of
    its own; a template's launcher passes it.
    """
    name, _, value = word.partition("=")
    is_beams = name == "--labels" and ("=" in value or value.startswith("{"))
    return f"--label={value}" if is_beams else word


def _unexpected_word(left: Sequence[str]) -> str | None:
    for word, before in zip(left, ["", *left], strict=False):
        # Beam's flags may have their values as words of their own.
        if not word.startswith("-") and (not before.startswith("--") or "=" in before):
            return (
                f"unexpected word {word!r}: flags are --name=value, and globs are quoted so that "
                "the shell leaves them alone"
            )
    return None


def _misspelt(left: Sequence[str], options: Sequence[str]) -> str | None:
    for word in left:
        if not word.startswith("--") or word.startswith("--label="):
            continue
        name = word.split("=")[0]
        close = difflib.get_close_matches(name, ["--help", *options], n=1, cutoff=_MISSPELT)
        if close:
            return f"unknown flag {name}; did you mean {close[0]}?"
    return None
