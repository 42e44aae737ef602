"""The reference of the command line holds every flag of every command."""

from __future__ import annotations

import re
import subprocess
import sys

from pipeline.flags.declarations.commands import COMMANDS, flags_of
from pipeline.flags.reference import reference

CELL = re.compile(r"(?<!\\)\|")


def test_each_command_has_a_section_with_its_flags() -> None:
    sections = dict(
        zip(COMMANDS, re.split(r"^## tracin \w+\n", reference(), flags=re.M)[1:], strict=True)
    )
    assert re.findall(r"^## tracin (\w+)$", reference(), flags=re.M) == list(COMMANDS)
    for command, section in sections.items():
        assert COMMANDS[command].summary[1:] in section
        rows = [
            [cell.strip() for cell in CELL.split(line)[1:-1]]
            for line in section.splitlines()
            if line.startswith("| `")
        ]
        assert [row[0] for row in rows] == [f"`{flag.option}`" for flag in flags_of(command)]
        for (_, value, default, text), flag in zip(rows, flags_of(command), strict=True):
            assert value.replace("\\|", "|") == f"`{flag.value_name}`"
            assert text and "{" not in text
            assert (default == "required") == (flag.required or flag.positional)
            assert (
                flag.required
                or flag.positional
                or default == (f"`{flag.default_text}`" if flag.default_text else "")
            )


def test_the_module_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.flags.reference"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == reference()
