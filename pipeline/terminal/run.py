"""The last lines of a run: its table, its time."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pipeline.terminal.amounts import count


def table(name: str, rows: int, run_id: str) -> str:
    """Returns how many rows of a run a table holds."""
    return f"table: {count(rows, 'row')} of run_id {run_id} in {name}"


def done(
    started: float, examples: int = 0, counts: Mapping[str, int] | None = None, scored: int = 0
) -> str:
    """Returns how long a run took, and for how much.

    Args:
        started: its start, of `time.monotonic`.
        examples: the number of examples of which there are features now.
        counts: the run's counters, which say how many of these an earlier run had extracted.
        scored: the number of scored pairs.
    """
    counts = counts or {}
    reused, unchanged = counts.get("examples-reused", 0), counts.get("examples-unchanged", 0)
    parts = {
        "read {:,} examples": examples - reused - unchanged,
        "took over {:,} that an earlier attempt had finished": reused,
        "copied {:,} that did not change": unchanged,
        "scored {:,} pairs": scored,
    }
    work = ", ".join(words.format(n) for words, n in parts.items() if n)
    return f"took {time.monotonic() - started:.1f} s" + (f": {work}" if work else "")
