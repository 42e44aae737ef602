"""The declarations are complete, and agree with each other."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.flags.declarations.commands import COMMANDS, FLAGS, flags_of
from pipeline.flags.declarations.flag import Flag, Use
from pipeline.flags.declarations.kinds import KEY, POSITIVE


def test_each_flag_is_declared_once() -> None:
    names = [name for flag in FLAGS for name in (flag.name, *flag.aliases)]
    assert len(names) == len(set(names))
    settings = [flag.setting for flag in FLAGS]
    assert len(settings) == len(set(settings))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_all_flags_that_name_it(command: str) -> None:
    # A flag under a heading that the command does not list would be lost.
    declared = {flag.name for flag in FLAGS if command in flag.commands}
    assert {flag.name for flag in flags_of(command)} == declared
    assert {command for flag in FLAGS for command in flag.commands} == set(COMMANDS)


def test_rules_and_alternatives_name_flags() -> None:
    for command, declared in COMMANDS.items():
        flags = flags_of(command)
        names = {flag.name for flag in flags}
        assert names.issuperset(name for names in declared.alternatives for name in names)
    known = {flag.name for flag in FLAGS}
    for flag in (flag for command in COMMANDS for flag in flags_of(command)):
        for rule in (*flag.excludes, *flag.needs):
            assert known.issuperset(rule.flags) and flag.name not in rule.flags


def test_a_use_replaces_what_it_names() -> None:
    flag = Flag(
        "size",
        POSITIVE,
        "size ({default})",
        {
            "show": Use(True, group="", help="key ({default})", default=None, kind=KEY),
            "plan": Use(),
        },
        "data",
        default=3,
        metavar="S",
    )
    shown, planned = flag.within("show"), flag.within("plan")
    assert (shown.required, shown.group, shown.text, shown.kind) == (True, "", "key (None)", KEY)
    assert (planned.required, planned.group, planned.text) == (False, "data", "size (3)")
    assert planned == flag and (planned.option, planned.value_name) == ("--size", "S")


@pytest.mark.parametrize(
    ("default", "text"),
    [(None, None), ((), None), (("a", "b"), "a,b"), (True, "true"), (0, "0"), (2.0, "2.0")],
)
def test_a_default_is_written_as_it_is_typed(default: object, text: str | None) -> None:
    flag = dataclasses.replace(FLAGS[0], default=default)
    assert flag.default_text == text
