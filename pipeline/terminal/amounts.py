"""Counts and sizes as a person reads them."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """Returns a number with its noun: `1 file`, `2,000 files`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def size(n: float) -> str:
    """Returns a number of bytes: `12 B`, `3.4 MB`."""
    return f"{n:.0f} B" if n < 1000 else scaled(n, "B")


def scaled(value: float, symbol: str) -> str:
    """Returns a number with a decimal prefix before its symbol: `1.2 Tflop`."""
    for prefix in ("", "K", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.1f} {prefix}{symbol}"
        value /= 1000
    return f"{value:,.1f} E{symbol}"


def percent(part: int, whole: int) -> str:
    """Returns a share in percent, without a number where rounding would make it 0."""
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 0.05 else "under 0.1 %"
