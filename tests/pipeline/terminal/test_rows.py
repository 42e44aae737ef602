"""Rows of results as tables of a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from pipeline.terminal.rows import in_full, influence_table, table

PROPONENT = {"train_id": "a", "train_label": 3, "score": 0.123456}
ROW = {"test_id": "t", "note": None, "proponents": [PROPONENT, PROPONENT], "opponents": []}


def printed(built: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(built)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_a_table_has_a_line_for_each_row() -> None:
    lines = printed(table(("test_id", "share"), [{"test_id": "t", "share": 1 / 3}]))
    assert lines[0].split() == ["test", "id", "share"]
    assert lines[-1].split() == ["t", "0.3333"]


def test_the_strongest_candidate_is_shown() -> None:
    line = printed(influence_table(("test_id",), [ROW]))[-1]
    assert " ".join(line.split()) == "t a (labelled 3) +0.1235"


def test_a_row_in_full_has_all_candidates() -> None:
    lines = [line.split() for line in printed(in_full(ROW))]
    assert [line[0] for line in lines] == ["test_id", "note", "proponents", "a"]


def test_what_a_terminal_would_obey_is_a_mark() -> None:
    (line,) = printed(in_full({"id": "a\x1b[2Jb"}))
    assert "\x1b" not in line and "a\N{REPLACEMENT CHARACTER}[2Jb" in line
