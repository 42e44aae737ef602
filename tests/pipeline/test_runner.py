"""What is told of a run that failed."""

from __future__ import annotations

from pipeline.running import runner
from transforms.core.errors import InputError
from transforms.storage.manifests import Manifest


def test_quotes_and_line_breaks_of_a_message_survive_the_runner():
    message = "--parse_fn='m:f' cannot be imported: expected key 'x'"
    text = (
        "Traceback (most recent call last):\n  File "
        '"a.py"\ntransforms.errors.InputError: '
        f"{message} [while running 'Step']\n"
    )
    assert runner._told(RuntimeError(text)) == message
    assert str(InputError("first line\n  second line")) == "first line second line"


def test_an_error_that_was_handled_is_not_blamed():
    text = (
        "Traceback:\ntransforms.errors.InputError: handled\n\nDuring handling of the above "
        "exception, another exception occurred:\n\nTraceback:\nKeyError: 'x'"
    )
    assert runner._told(RuntimeError(text)) is None


def test_a_fault_of_ours_keeps_its_traceback():
    assert runner._told(ZeroDivisionError("division by zero")) is None


def test_a_result_that_cannot_be_read_back_is_a_failed_run(tmp_path, capsys):
    assert runner.exit_with("score", lambda: print(runner.read_back(str(tmp_path), Manifest))) == 1
    assert capsys.readouterr().err.startswith("tracin score: failed: --output=")


def test_a_mistake_before_the_start_is_status_2(capsys):
    def mistaken() -> None:
        raise InputError("no such thing")

    assert runner.exit_with("score", mistaken) == 2
    assert capsys.readouterr().err == "tracin score: no such thing\n"


def test_a_stopped_run_says_so(capsys):
    def stopped() -> None:
        raise KeyboardInterrupt

    assert runner.exit_with("score", stopped) == 130
    assert capsys.readouterr().err == "tracin score: stopped\n"
