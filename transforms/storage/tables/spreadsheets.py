"""Rows as CSV for spreadsheets, which run text that begins with certain characters as a formula.

Quotes do not prevent that. So such text gets an apostrophe in front, and so does text that begins
with an apostrophe of its own: a program that reads the file takes one leading apostrophe away and
has the text again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_MARK = "'"


def to_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns rows as CSV (RFC 4180) in UTF-8, with a head of the names; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(names)
    for row in rows:
        writer.writerow(
            [harmless(row[name]) if isinstance(row[name], str) else row[name] for name in names]
        )
    return out.getvalue().encode()


def harmless(text: str) -> str:
    """Returns text that no spreadsheet takes for a formula."""
    return _MARK + text if text.startswith((*_FORMULAS, _MARK)) else text
