"""The page of the command line has every flag."""

import cli

from pipeline.flags.declarations import commands


def test_a_page_includes_a_section_for_each_command() -> None:
    page = cli.include("# Command line\n\n```{cli}\n```\n")
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == ["# Command line", *(f"## tracin {name}" for name in commands.COMMANDS)]


def test_every_flag_has_help() -> None:
    assert cli.undocumented() == []


def test_a_flag_without_help_is_found(monkeypatch) -> None:
    import dataclasses

    (first, *others) = commands.flags_of("plan")
    bare = (dataclasses.replace(first, help=""), *others)
    monkeypatch.setattr(cli, "flags_of", lambda command: bare if command == "plan" else ())
    assert cli.undocumented() == [f"plan {first.option}"]
