"""The reference of the command line as Markdown, made from the declarations.

`python -m pipeline.flags.reference` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.flags.declarations.commands import COMMANDS, flags_of
from pipeline.flags.declarations.flag import Flag

_INTRODUCTION = """# Command line

`tracin COMMAND --flag=value …` runs a command; `tracin COMMAND --help` prints its flags. Any flag
of Apache Beam may follow: `--runner`, `--direct_num_workers`, `--project`, `--region`,
`--temp_location`, `--sdk_container_image`, …
"""


def reference() -> str:
    """Returns one section for each command, with a table for each group of its flags."""
    sections = ["\n".join(_section(command)) for command in COMMANDS]
    return "\n".join([_INTRODUCTION, *sections])


def _section(command: str) -> Iterator[str]:
    summary = COMMANDS[command].summary
    yield f"## tracin {command}\n"
    yield f"{summary[0].upper()}{summary[1:]}.\n"
    groups: dict[str, list[Flag]] = {}
    for flag in flags_of(command):
        groups.setdefault(flag.group, []).append(flag)
    for group, flags in groups.items():
        if group:
            yield f"**{group[0].upper()}{group[1:]}**\n"
        yield from _table(flags)
        yield ""


def _table(flags: Iterable[Flag]) -> Iterator[str]:
    yield "| flag | value | default | |"
    yield "|---|---|---|---|"
    for flag in flags:
        default = "required" if flag.required or flag.positional else _code(flag.default_text)
        yield f"| {_code(flag.option)} | {_code(flag.value_name)} | {default} | {_text(flag)} |"


def _code(text: str | None) -> str:
    # Python-Markdown and GitHub take a backslash before a bar in a cell's code for the bar alone.
    return "`" + text.replace("|", "\\|") + "`" if text else ""


def _text(flag: Flag) -> str:
    text = flag.help.replace(" ({default})", "").replace("|", "\\|")
    if flag.aliases:
        text += f" (earlier {', '.join(f'`--{alias}`' for alias in flag.aliases)})"
    return text


if __name__ == "__main__":
    print(reference(), end="")
