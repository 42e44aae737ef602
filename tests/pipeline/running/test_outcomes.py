"""How a command ends: its exit status, and the line for a run that failed."""

from __future__ import annotations

import pytest

from pipeline.running import outcomes
from transforms.core.errors import InputError
from transforms.storage.manifests import Manifest


def test_quotes_and_line_breaks_of_a_message_survive_the_runner():
    message = "--parse_fn='m:f' cannot be imported: expected key 'x'"
    text = (
        "Traceback (most recent call last):\n  File "
        '"a.py"\ntransforms.errors.InputError: '
        f"{message} [while running 'Step']\n"
    )
    assert outcomes.input_error_message(RuntimeError(text)) == message
    assert str(InputError("first line\n  second line")) == "first line second line"


def test_an_error_that_was_handled_is_not_blamed():
    text = (
        "Traceback:\ntransforms.errors.InputError: handled\n\nDuring handling of the above "
        "exception, another exception occurred:\n\nTraceback:\nKeyError: 'x'"
    )
    assert outcomes.input_error_message(RuntimeError(text)) is None


def test_a_fault_of_ours_keeps_its_traceback():
    assert outcomes.input_error_message(ZeroDivisionError("division by zero")) is None


def test_a_result_that_cannot_be_read_back_is_a_failed_run(tmp_path, capsys):
    assert (
        outcomes.exit_with("score", lambda: print(outcomes.read_back(str(tmp_path), Manifest))) == 1
    )
    assert capsys.readouterr().err.startswith("tracin score: failed: --output=")


def test_a_mistake_before_the_start_is_status_2(capsys):
    def mistaken() -> None:
        raise InputError("no such thing")

    assert outcomes.exit_with("score", mistaken) == 2
    assert capsys.readouterr().err == "tracin score: no such thing\n"


def test_a_stopped_run_says_so(capsys):
    def stopped() -> None:
        raise KeyboardInterrupt

    assert outcomes.exit_with("score", stopped) == 130
    assert capsys.readouterr().err == "tracin score: stopped\n"


def test_an_error_deep_inside_a_run_is_told_in_one_line() -> None:
    assert (
        outcomes.input_error_message(InputError("it is cut [while running 'A/B-ptransform-7']"))
        == "it is cut"
    )
    trace = (
        "Traceback …\n  File …\ntransforms.errors.InputError: data/a: it is cut [while running "
        "'ReadFiles']\n\nmore"
    )
    assert outcomes.input_error_message(RuntimeError(trace)) == "data/a: it is cut"
    assert outcomes.input_error_message(RuntimeError("something of our own doing")) is None


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (None, 0, ""),
        (InputError("wrong"), 2, "tracin x: wrong\n"),
        (outcomes.RunFailed("cut"), 1, "tracin x: failed: cut\n"),
        (KeyboardInterrupt(), 130, "tracin x: stopped\n"),
    ],
)
def test_how_a_command_ends_is_its_exit_status(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, status: int, told: str
) -> None:
    def body() -> None:
        if error:
            raise error

    assert outcomes.exit_with("x", body) == status
    assert capsys.readouterr().err == told


def test_a_bug_is_not_taken_for_a_mistake_of_the_user() -> None:
    def body() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        outcomes.exit_with("x", body)
