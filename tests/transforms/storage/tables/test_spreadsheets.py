"""CSV for spreadsheets: nothing is a formula, and everything comes back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.storage.tables.spreadsheets import harmless, to_csv


@pytest.mark.parametrize(
    "first", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'"]
)
def test_no_text_begins_like_a_formula(first):
    assert harmless(first + "1+1") == f"'{first}1+1"
    assert harmless("1" + first) == "1" + first


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), max_size=20), st.integers(), st.floats(0, 1)
        ),
        max_size=5,
    )
)
def test_rows_come_back(rows):
    names = ("example_id", "offset", "suspicion")
    text = to_csv(names, [dict(zip(names, row, strict=True)) for row in rows]).decode()
    head, *found = csv.reader(io.StringIO(text, newline=""))
    assert head == list(names)
    assert [
        (one.removeprefix("'"), int(offset), float(suspicion)) for one, offset, suspicion in found
    ] == rows
    assert all(not one.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for one, _, _ in found)


def test_numbers_stay_numbers_and_nothing_is_empty():
    assert (
        to_csv(("a", "b", "c"), [{"a": -1.5, "b": None, "c": 'x,"y"'}])
        == b'a,b,c\r\n-1.5,,"x,""y"""\r\n'
    )
