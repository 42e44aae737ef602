"""Errors that a user can mend: one line, and the setting to change."""

from __future__ import annotations

import pytest

from transforms.core.errors import InputError, first_line


def test_a_message_is_one_line() -> None:
    assert str(InputError("`k=0`: expected\n  a positive\tnumber")) == (
        "`k=0`: expected a positive number"
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("`k=0`: expected a positive number", "k"),
        ("give `learning_rates`, or leave `normalize` out", "learning_rates"),
        ("`features='/a b'` cannot be read", "features"),
        ("run `tracin index` first", None),
        ("the disk is full", None),
    ],
)
def test_the_first_setting_that_is_named_is_the_field(message: str, field: str | None) -> None:
    assert InputError(message).field == field


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no space left.\nTraceback of the server"), "no space left"),
        (ValueError("\n\n  indented  \n"), "indented"),
        (ValueError("{{node model/dense}} shapes differ"), "shapes differ"),
        (ValueError("\x1b[1mshapes differ\x1b[0m"), "shapes differ"),
        (ValueError("Layers are missing:\ndense_1\ndense_2"), "Layers are missing: dense_1"),
        (
            ValueError("Exception encountered when calling Dense.call().\n\nshapes differ"),
            "Exception encountered when calling Dense.call(). shapes differ",
        ),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_of_an_error_and_the_next_where_it_is_announced(
    error: Exception, line: str
) -> None:
    assert first_line(error) == line
