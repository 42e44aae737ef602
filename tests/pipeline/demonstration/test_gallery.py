"""The demo's findings in the terminal."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from pipeline.demonstration import digits, findings, gallery


@pytest.mark.parametrize(
    ("encoding", "colours", "told"),
    [
        ("utf-8", None, "▀▄█ "),
        ("ascii", None, "'.# "),
        ("utf-8", "truecolor", "▀▀▀▀"),
        ("ascii", "truecolor", "'.# "),
    ],
)
def test_drawing(encoding, colours, told):
    image = np.zeros((8, 8))
    image[0, 0] = image[1, 1] = image[0, 2] = image[1, 2] = 1
    console = Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding=encoding),
        color_system=colours,
        force_terminal=colours is not None,
        no_color=False,
    )
    drawn = gallery.draw(image, console)
    lines = drawn.plain.split("\n")
    assert [len(line) for line in lines] == [8, 8, 8, 8]
    assert lines[0][:4] == told
    assert bool(drawn.spans) == (told == "▀▀▀▀")


def test_table_is_as_wide_as_the_terminal_allows():
    train, test = digits.load()
    candidates = tuple(findings.Candidate(row, 1.0 - row) for row in range(5))
    traced = [findings.Traced(0, 1, 0.1, candidates, candidates[:2])]
    for width, shown in ((40, 1), (80, 3), (130, 5), (300, 5)):
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(gallery.traced_table(traced, test, train, console))
        printed = console.file.getvalue()
        assert max(map(len, printed.splitlines())) <= width
        assert printed.count("train-") == shown + min(shown, 2)
