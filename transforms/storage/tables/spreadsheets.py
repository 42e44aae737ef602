"""Rows as CSV for a spreadsheet, which takes text that begins with certain characters for a formula
and runs it.

Quotes do not stop it. So such text begins with an apostrophe here, and text that begins with an
apostrophe of its own with one more: whoever reads the file by a program takes one apostrophe away
where there is one, and has the text again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_MARK = "'"


def to_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as CSV (RFC 4180) in UTF-8, with a head of the names; numbers as they are, None as
    nothing.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(names)
    for row in rows:
        writer.writerow(
            [harmless(row[name]) if isinstance(row[name], str) else row[name] for name in names]
        )
    return out.getvalue().encode()


def harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return _MARK + text if text.startswith((*_FORMULAS, _MARK)) else text
