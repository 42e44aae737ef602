"""The last lines of a run."""

from __future__ import annotations

import re
import time

import pytest

from pipeline.terminal.run import done, table


def test_a_table_is_named_with_its_rows() -> None:
    assert table("p:d.t", 1, "r") == "table: 1 row of run_id r in p:d.t"


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        ({}, ""),
        ({"scored": 12345}, ": scored 12,345 pairs"),
        ({"examples": 10}, ": read 10 examples"),
        (
            {"examples": 10, "counts": {"examples-reused": 3, "examples-unchanged": 2}},
            ": read 5 examples, took over 3 that an earlier attempt had finished, "
            "copied 2 that did not change",
        ),
    ],
)
def test_the_work_of_a_run(arguments: dict, work: str) -> None:
    line = done(time.monotonic() - 2, **arguments)
    assert re.fullmatch(r"took 2\.\d s(.*)", line)[1] == work  # type: ignore[index]
