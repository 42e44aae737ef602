"""Rules between flags: what excludes, what needs, what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.flags import parser, rules
from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.commands import flags_of
from pipeline.flags.declarations.flag import Excludes, Flag, Needs, commands

SHOW = commands("show")
FLAGS = (
    Flag(
        "old",
        kinds.NAME,
        "",
        SHOW,
        excludes=(Excludes(("new", "elsewhere"), "{flag} and {other} exclude each other: why"),),
    ),
    Flag("new", kinds.NAME, "", SHOW, default="x", field="fresh"),
    Flag("date", kinds.NAME, "", SHOW, needs=(Needs(("old", "new"), "needs an age"),)),
    Flag("far", kinds.NAME, "", SHOW, needs=(Needs(("elsewhere",), "needs another command"),)),
)


def mistake(command: str, flags: Sequence[Flag], *words: str) -> str | None:
    args = parser.parser(command, flags).parse_args(words)
    return rules.mistake(command, flags, args)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--old=1"], None),
        (["--old=1", "--new=2"], "--old and --new exclude each other: why"),
        # The default's own value is as good as none.
        (["--old=1", "--new=x"], None),
        (["--date=1"], "--date needs an age"),
        (["--date=1", "--new=2"], None),
        # What it needs is no flag of this command.
        (["--far=1"], None),
    ],
)
def test_exclusions_and_needs(words: list[str], expected: str | None) -> None:
    assert mistake("show", FLAGS, *words) == expected


OUTPUT = "--output=o"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "missing --features, or --examples and --checkpoints"),
        (["--examples=a"], "missing --checkpoints"),
        (["--checkpoints=a"], "missing --examples"),
        (["--features=a"], None),
        (["--examples=a", "--checkpoints=b"], None),
    ],
)
def test_one_of_the_alternatives_is_whole(words: list[str], expected: str | None) -> None:
    assert mistake("audit", flags_of("audit"), OUTPUT, *words) == expected


def test_what_is_of_one_command_binds_no_other() -> None:
    score = ["--train_features=a", "--test_features=b", OUTPUT, "--sum_positions"]
    assert mistake("score", flags_of("score"), *score) is None
    assert "--per_token" in str(
        mistake(
            "influence",
            flags_of("influence"),
            "--train_examples=a",
            "--test_examples=b",
            "--checkpoints=c",
            OUTPUT,
            "--sum_positions",
        )
    )
