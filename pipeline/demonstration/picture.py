"""The demo's findings as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.demonstration.digits import Digits
from pipeline.demonstration.findings import FRACTIONS, Inspection, Traced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_GREEN, _RED, _BLUE = "#1a7f37", "#cf222e", "#0969da"


def picture(traced: Sequence[Traced], inspection: Inspection, test: Digits, train: Digits) -> bytes:
    """Returns a PNG of the traced test digits with their proponents and opponents, and of how fast
    self-influence finds planted labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(
        len(candidates) for digit in traced for candidates in (digit.proponents, digit.opponents)
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
    parts = _parts(figure, columns, int(inspection.found[-1]))
    _plot_traced(parts[:3], columns, traced, test, train)
    _plot_found(parts[3].subplots(), inspection)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _parts(figure: Figure, columns: int, planted: int) -> list[SubFigure]:
    """Divides the figure into parts, each with its heading."""
    # Every heading has two lines, so that the rows of the parts stay level.
    headings = (
        ("Worst-read\ntest digit", "black"),
        ("Proponents\npulled towards the true label", _GREEN),
        ("Opponents\npulled away from it", _RED),
        (
            f"Where the {planted} wrong labels are\nwhen self-influence sorts the training set",
            "black",
        ),
    )
    grid = figure.add_gridspec(1, 4, width_ratios=[1.25, columns, columns, 5.5], wspace=0.03)
    parts = [figure.add_subfigure(grid[i]) for i in range(len(headings))]
    for part, (heading, colour) in zip(parts, headings, strict=True):
        part.suptitle(heading, fontsize=12, color=colour)
    return parts


def _plot_traced(
    parts: Sequence[SubFigure],
    columns: int,
    traced: Sequence[Traced],
    test: Digits,
    train: Digits,
) -> None:
    grids = [
        part.subplots(len(traced), width, squeeze=False)
        for part, width in zip(parts, (1, columns, columns), strict=True)
    ]
    for axes in (axes for grid in grids for axes in grid.flat):
        axes.set_axis_off()
    for i, digit in enumerate(traced):
        truth = test.truth[digit.row]
        _show(
            grids[0][i, 0],
            test.images[digit.row],
            f"{truth}, read as {digit.prediction}\np({truth}) = {digit.label_probability:.1%}",
        )
        for grid, candidates in zip(grids[1:], (digit.proponents, digit.opponents), strict=True):
            for axes, candidate in zip(grid[i], candidates, strict=False):
                title = f"labelled {train.labels[candidate.row]}\n{candidate.score:+.2f}"
                _show(axes, train.images[candidate.row], title, bool(train.planted[candidate.row]))


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
        part = inspection.found[inspection.first(fraction)] / planted
        axes.plot(fraction, part, "o", color=_BLUE)
        note = f"{part:.0%} found in the first {fraction:.0%}"
        axes.annotate(note, (fraction, part), (10, -14), textcoords="offset points", fontsize=10)
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
