"""Rows of results as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

SUSPECT = (
    "example_id",
    "label",
    "suggested_label",
    "suspicion",
    "self_influence",
    "source",
    "offset",
)
DUPLICATE = (
    "group",
    "example_id",
    "label",
    "suggested_label",
    "similarity",
    "suspicion",
    "source",
    "offset",
)
INFLUENCE = ("test_id", "test_label", "test_prediction", "test_probability", "self_influence")
SUMMED_INFLUENCE = (
    "test_id",
    "test_positions",
    "test_wrong_positions",
    "test_label_probability",
    "self_influence",
)


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Returns rows with a line each."""
    built = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        built.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        built.add_row(*(_text(row[name]) for name in columns))
    return built


def influence_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Returns rows of influence with their strongest proponent and opponent."""
    return table((*columns, "proponent", "opponent"), map(_with_strongest, rows))


def in_full(row: Mapping[str, Any]) -> Table:
    """Returns one row with a line for each of its fields, and of each candidate."""
    built = Table(box=None, show_header=False, pad_edge=False)
    built.add_column(style="dim", no_wrap=True)
    built.add_column(overflow="fold")
    for name, value in row.items():
        if name in ("proponents", "opponents"):
            for i, candidate in enumerate(value):
                built.add_row("" if i else name, _text(_candidate(candidate)))
        else:
            built.add_row(name, _text(value))
    return built


def _with_strongest(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "proponent": _candidate(row["proponents"][0]) if row["proponents"] else None,
        "opponent": _candidate(row["opponents"][0]) if row["opponents"] else None,
    }


def _candidate(candidate: Mapping[str, Any]) -> str:
    description = (
        f"labelled {candidate['train_label']}"
        if "train_label" in candidate
        else f"{candidate['train_positions']:,} positions"
    )
    return f"{candidate['train_id']} ({description}) {candidate['score']:+.4g}"


def _text(value: Any) -> Text:
    """Returns a value as text; marks replace what a terminal would take for a command, or print out
    of its order.
    """
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return Text(
        "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
            for character in text
        )
    )
