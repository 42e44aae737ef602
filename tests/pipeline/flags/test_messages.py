"""Settings in messages become flags."""

from __future__ import annotations

import pytest

from pipeline.flags.messages import with_flags


def test_a_word_without_a_flag_is_named_as_in_the_help() -> None:
    assert with_flags("`directory='x'` cannot be read", "show") == "DIR='x' cannot be read"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`k` is 0", "--k is 0"),
        ("`features='a b'` cannot be read", "--features='a b' cannot be read"),
        # The flag has another name than its field.
        ("`imports` names 'x'", "--import names 'x'"),
        ("`tracin index` and `nothing_of_ours`", "`tracin index` and `nothing_of_ours`"),
        # `tracin show` takes it as a word of its own.
        ("`directory` is empty", "`directory` is empty"),
    ],
)
def test_settings_are_named_as_flags(message: str, expected: str) -> None:
    assert with_flags(message) == expected
