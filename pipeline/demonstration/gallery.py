"""The demo's findings to look at: digits drawn in the terminal, and a picture of the same as a PNG
file.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.color import Color
from rich.console import Console, Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pipeline.demonstration.digits import Digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRACTIONS = (0.1, 0.2)  # how much of the training set a person may look through
_CELL = 11  # columns of the terminal that a training digit takes, with the space beside it
_TEST_CELL = 13
_INK = 0.4  # from here on a pixel is drawn where there are no grey levels
_BLOCKS, _ASCII = " ▀▄█", " '.#"  # none, the upper, the lower, both of two pixels inked
_GREEN, _RED, _BLUE = "#1a7f37", "#cf222e", "#0969da"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A training digit, by its row, that influenced a test digit, and how much."""

    row: int
    score: float


@dataclasses.dataclass(frozen=True)
class Traced:
    """A test digit and where its prediction comes from.

    Attributes:
        row: its row among the test digits.
        prediction: what the last checkpoint takes it for.
        label_probability: what the last checkpoint gives its true label.
        proponents, opponents: strongest first.
    """

    row: int
    prediction: int
    label_probability: float
    proponents: tuple[Candidate, ...]
    opponents: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """The training digits in the order in which a person should look at them.

    Attributes:
        order: [n] rows, by falling self-influence.
        found: [n + 1] how many of the planted wrong labels are among the first 0 … n.
    """

    order: np.ndarray
    found: np.ndarray

    @staticmethod
    def of(self_influence: np.ndarray, planted: np.ndarray) -> Inspection:
        """The inspection of n examples with their self-influence [n], given which labels are wrong
        [n].
        """
        order = np.argsort(-self_influence, kind="stable")
        return Inspection(order, np.concatenate([[0], np.cumsum(planted[order])]))

    def first(self, fraction: float) -> int:
        """How many examples are a fraction of them."""
        return int(fraction * len(self.order))


def draw(image: np.ndarray, console: Console) -> Text:
    """A digit [8, 8] in 4 lines of 8 characters, each of them two pixels: in grey levels, or as ink
    where the console has no colours.
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
    """Test digits with their strongest proponents and opponents, as many as the console is wide
    enough for.
    """
    most = max(len(candidates) for one in traced for candidates in (one.proponents, one.opponents))
    shown = max(1, min(most, (console.width - _TEST_CELL - 1) // (2 * _CELL)))
    table = Table(box=box.HORIZONTALS, show_lines=True, show_edge=False, padding=0)
    table.add_column("test digit", width=_TEST_CELL - 1, no_wrap=True)
    for name, style in (("proponents", "green"), ("opponents", "red")):
        for i in range(shown):
            # The last proponent's column is wider, to set the opponents apart.
            width = _CELL if name == "proponents" and i == shown - 1 else _CELL - 1
            table.add_column(Text(name if i == 0 else "", style), width=width, no_wrap=True)
    for one in traced:
        cells = [_test_cell(one, test, console)]
        for candidates in (one.proponents, one.opponents):
            drawn = [
                _train_cell(c.row, train, console, f"{c.score:+.2f}") for c in candidates[:shown]
            ]
            cells += drawn + [Group()] * (shown - len(drawn))
        table.add_row(*cells)
    return table


def _test_cell(one: Traced, test: Digits, console: Console) -> Group:
    truth = test.truth[one.row]
    return Group(
        draw(test.images[one.row], console),
        Text(test.ids[one.row], "dim"),
        Text(f"{truth}, read as {one.prediction}", "bold"),
        Text(f"p({truth}) = {one.label_probability:.1%}"),
    )


def _train_cell(row: int, train: Digits, console: Console, told: str) -> Group:
    lines = [
        draw(train.images[row], console),
        Text(train.ids[row], "dim"),
        Text(f"labelled {train.labels[row]}"),
    ]
    if told:
        lines.append(Text(told))
    if train.planted[row]:
        lines.append(Text(f"WRONG: a {train.truth[row]}", "bold red"))
    return Group(*lines)


def found_table(inspection: Inspection) -> Table:
    """How many planted wrong labels are found by looking at the first part of the training set."""
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
    """A row of the training digits with the highest self-influence."""
    rows = inspection.order[: max(1, console.width // _CELL)]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for _ in rows:
        table.add_column(width=_CELL - 1, no_wrap=True)
    table.add_row(*(_train_cell(row, train, console, "") for row in rows))
    return table


def picture(traced: Sequence[Traced], inspection: Inspection, test: Digits, train: Digits) -> bytes:
    """A PNG of the traced test digits with their proponents and opponents, and of how fast
    self-influence finds planted labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(
        len(candidates) for one in traced for candidates in (one.proponents, one.opponents)
    )
    figure = Figure(
        figsize=(17, 1.3 * len(traced) + 2), dpi=110, layout="constrained", facecolor="white"
    )
    figure.suptitle(
        "Which training digits are behind the worst mistakes, and whose labels are wrong?",
        fontsize=16,
        fontweight="bold",
    )
    figure.supxlabel(
        "red frame: this training label was made wrong on purpose", fontsize=11, color=_RED
    )
    # Every heading has two lines, so that the rows of the parts stay level.
    parts = figure.add_gridspec(1, 4, width_ratios=[1.25, columns, columns, 5.5], wspace=0.03)
    headings = (
        ("Worst-read\ntest digit", "black"),
        ("Proponents\npulled towards the true label", _GREEN),
        ("Opponents\npulled away from it", _RED),
        (
            f"Where the {inspection.found[-1]} wrong labels are\nwhen self-influence sorts the "
            "training set",
            "black",
        ),
    )
    subfigures = [figure.add_subfigure(parts[i]) for i in range(len(headings))]
    for subfigure, (heading, colour) in zip(subfigures, headings, strict=True):
        subfigure.suptitle(heading, fontsize=12, color=colour)
    grids = [
        subfigures[i].subplots(len(traced), width, squeeze=False)
        for i, width in enumerate((1, columns, columns))
    ]
    for axes in (axes for grid in grids for axes in grid.flat):
        axes.set_axis_off()
    for i, one in enumerate(traced):
        truth = test.truth[one.row]
        _show(
            grids[0][i, 0],
            test.images[one.row],
            f"{truth}, read as {one.prediction}\np({truth}) = {one.label_probability:.1%}",
        )
        for grid, candidates in zip(grids[1:], (one.proponents, one.opponents), strict=True):
            for axes, candidate in zip(grid[i], candidates, strict=False):
                title = f"labelled {train.labels[candidate.row]}\n{candidate.score:+.2f}"
                _show(axes, train.images[candidate.row], title, bool(train.planted[candidate.row]))
    _plot_found(subfigures[3].subplots(), inspection)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _show(axes: Axes, image: np.ndarray, title: str, framed: bool = False) -> None:
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="bicubic")
    axes.set_title(title, fontsize=8.5, pad=4)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=_RED if framed else "#d0d7de", linewidth=3.5 if framed else 0.8)


def _plot_found(axes: Axes, inspection: Inspection) -> None:
    n, planted = len(inspection.order), int(inspection.found[-1])
    inspected = np.arange(n + 1) / n
    axes.plot(
        inspected,
        inspection.found / planted,
        color=_BLUE,
        linewidth=2.5,
        label="by self-influence, highest first",
    )
    axes.plot([0, 1], [0, 1], color="#6e7781", linestyle="--", label="in any order (chance)")
    for fraction in FRACTIONS:
        found = inspection.found[inspection.first(fraction)] / planted
        axes.plot(fraction, found, "o", color=_BLUE)
        told = f"{found:.0%} found in the first {fraction:.0%}"
        axes.annotate(told, (fraction, found), (10, -14), textcoords="offset points", fontsize=10)
    axes.set(
        xlabel="part of the training set looked at",
        ylabel="part of the wrong labels found",
        xlim=(0, 1),
        ylim=(0, 1.03),
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
