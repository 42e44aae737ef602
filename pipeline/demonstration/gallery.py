"""The demo's findings in the terminal, with the digits drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.color import Color
from rich.console import Console, Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pipeline.demonstration.digits import Digits
from pipeline.demonstration.findings import FRACTIONS, Inspection, Traced

_CELL = 11  # columns of the terminal that a training digit takes, with the space beside it
_TEST_CELL = 13
_INK = 0.4  # the least grey of a drawn pixel, where there are no grey levels
_BLOCKS, _ASCII = " ▀▄█", " '.#"  # none, the upper, the lower, both of two pixels inked


def draw(image: np.ndarray, console: Console) -> Text:
    """Draws a digit [8, 8] in 4 lines of 8 characters, each of two pixels: in grey levels, or as
    ink where the console has no colours.
    """
    grey = console.color_system is not None and not console.no_color
    characters = _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII
    if characters == _ASCII:
        grey = False
    picture = Text(no_wrap=True)
    for line, (upper, lower) in enumerate(zip(image[::2], image[1::2], strict=True)):
        if line:
            picture.append("\n")
        for above, below in zip(upper, lower, strict=True):
            if grey:
                picture.append("▀", Style(color=_grey(above), bgcolor=_grey(below)))
            else:
                picture.append(characters[(above >= _INK) + 2 * (below >= _INK)])
    return picture


def _grey(ink: float) -> Color:
    level = round(255 * float(ink))
    return Color.from_rgb(level, level, level)


def traced_table(traced: Sequence[Traced], test: Digits, train: Digits, console: Console) -> Table:
    """Returns test digits with their strongest proponents and opponents, as many as the console is
    wide enough for.
    """
    most = max(max(len(digit.proponents), len(digit.opponents)) for digit in traced)
    shown = max(1, min(most, (console.width - _TEST_CELL - 1) // (2 * _CELL)))
    table = Table(box=box.HORIZONTALS, show_lines=True, show_edge=False, padding=0)
    table.add_column("test digit", width=_TEST_CELL - 1, no_wrap=True)
    for name, style in (("proponents", "green"), ("opponents", "red")):
        for i in range(shown):
            # The last proponent's column is wider, to set the opponents apart.
            width = _CELL if name == "proponents" and i == shown - 1 else _CELL - 1
            table.add_column(Text(name if i == 0 else "", style), width=width, no_wrap=True)
    for digit in traced:
        cells = [_test_cell(digit, test, console)]
        for candidates in (digit.proponents, digit.opponents):
            drawn = [
                _train_cell(c.row, train, console, f"{c.score:+.2f}") for c in candidates[:shown]
            ]
            cells += drawn + [Group()] * (shown - len(drawn))
        table.add_row(*cells)
    return table


def _test_cell(digit: Traced, test: Digits, console: Console) -> Group:
    truth = test.truth[digit.row]
    return Group(
        draw(test.images[digit.row], console),
        Text(test.ids[digit.row], "dim"),
        Text(f"{truth}, read as {digit.prediction}", "bold"),
        Text(f"p({truth}) = {digit.label_probability:.1%}"),
    )


def _train_cell(row: int, train: Digits, console: Console, score: str) -> Group:
    lines = [
        draw(train.images[row], console),
        Text(train.ids[row], "dim"),
        Text(f"labelled {train.labels[row]}"),
    ]
    if score:
        lines.append(Text(score))
    if train.planted[row]:
        lines.append(Text(f"WRONG: a {train.truth[row]}", "bold red"))
    return Group(*lines)


def found_table(inspection: Inspection) -> Table:
    """Returns how many planted wrong labels are in the first part of the training set."""
    planted = int(inspection.found[-1])
    table = Table(box=box.HORIZONTALS, show_edge=False, pad_edge=False)
    for title in (
        "look at the first",
        "training digits",
        "wrong labels found",
        "chance would find",
    ):
        table.add_column(title, justify="right")
    for fraction in FRACTIONS:
        first = inspection.first(fraction)
        found = int(inspection.found[first])
        chance = planted * first / len(inspection.order)
        table.add_row(
            f"{fraction:.0%}",
            f"{first:,}",
            f"{found} of {planted} ({found / planted:.0%})",
            f"{chance:.0f}",
        )
    return table


def suspects_table(inspection: Inspection, train: Digits, console: Console) -> Table:
    """Returns the training digits with the highest self-influence, in a row."""
    rows = inspection.order[: max(1, console.width // _CELL)]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for _ in rows:
        table.add_column(width=_CELL - 1, no_wrap=True)
    table.add_row(*(_train_cell(row, train, console, "") for row in rows))
    return table
