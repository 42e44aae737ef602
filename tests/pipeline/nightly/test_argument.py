"""The argument of a night: what is read, defaults, what is refused."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from pipeline.nightly.argument import NightlyConfig, read_argument
from tests.fakes.nights import ARGUMENT, ROOT, argument
from transforms.core.errors import InputError


def read(words_date: str | None = None, **changes: Any) -> NightlyConfig:
    return read_argument(json.dumps(argument(**changes)), words_date, "2026-11-25")


def test_a_text_and_a_file_are_read_alike(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "argument.json"
    path.write_text(json.dumps(ARGUMENT))
    assert read_argument(str(path), None, "2026-11-25") == read()


def test_what_is_left_out_has_a_default() -> None:
    config = read(test=None, score=None, audit=None, drift=None, project=None)
    assert (config.test, config.score, config.audit, config.drift) == (None, {}, {}, {})
    assert (config.reuse, config.attempts, config.hours, config.project) == (True, 2, 24, None)
    text = json.dumps({**ARGUMENT, "test": None})
    assert read_argument(text, None, "2026-11-25").test is None


def test_the_date_is_that_of_the_command_line_then_of_the_argument_then_todays() -> None:
    assert read("2026-11-01", date="2026-11-02").date == "2026-11-01"
    assert read(date="2026-11-02").date == "2026-11-02"
    assert read().date == "2026-11-25" and read().root == ROOT


@pytest.mark.parametrize("wrong", ["yesterday", "2026-11-25T00:00", "26-11-25", "2026-02-30"])
def test_another_date_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="expected a date such as 2026-11-25") as caught:
        read(date=wrong)
    assert caught.value.field == "date"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bucket", 1),
        ("model", "gs://data/checkpoints"),
        ("test", "gs://data/test"),
        ("attempts", 0),
        ("attempts", True),
        ("hours", 1.5),
        ("reuse", "no"),
    ],
)
def test_a_value_of_another_type_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(**{field: value})
    assert caught.value.field == field


def test_fields_that_are_missing_or_unknown_are_named() -> None:
    with pytest.raises(InputError, match=r"the argument needs `bucket`, `train`$"):
        read(bucket=None, train=None)
    with pytest.raises(InputError, match="the argument has no field 'chekpoints'; it has bucket"):
        read(chekpoints="gs://data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.json", "is no JSON object and cannot be read"),
        ("{", "the argument is no JSON"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_argument(text, None, "2026-11-25")


def test_a_file_of_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "argument.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"argument\.json: expected a JSON object"):
        read_argument(str(path), None, "2026-11-25")
