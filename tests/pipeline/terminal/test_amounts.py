"""Counts and sizes as a person reads them."""

from __future__ import annotations

import pytest

from pipeline.terminal.amounts import count, percent, scaled, size


def test_a_noun_has_its_number() -> None:
    assert (count(0, "file"), count(1, "file"), count(1234, "file")) == (
        "0 files",
        "1 file",
        "1,234 files",
    )


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (34_560_000, "34.6 MB"), (2e18, "2.0 EB")],
)
def test_sizes(n: float, text: str) -> None:
    assert size(n) == text


def test_a_unit_has_its_prefix() -> None:
    assert (scaled(12, "flop"), scaled(1.5e12, "flop")) == ("12.0 flop", "1.5 Tflop")
    assert scaled(5e21, "B") == "5,000.0 EB"


def test_a_small_share_is_not_rounded_to_nothing() -> None:
    assert (percent(1, 8), percent(1, 10**6), percent(8, 8)) == (
        "12.5 %",
        "under 0.1 %",
        "100.0 %",
    )
