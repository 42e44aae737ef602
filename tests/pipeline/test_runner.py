"""What is told of a run that failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline import runner
from tests.conftest import Outcome
from transforms.errors import InputError
from transforms.manifest import Manifest


def test_quotes_and_line_breaks_of_a_message_survive_the_runner():
    message = "--parse_fn='m:f' cannot be imported: expected key 'x'"
    text = f"Traceback (most recent call last):\n  File \"a.py\"\ntransforms.errors.InputError: {message} [while running 'Step']\n"
    assert runner._told(RuntimeError(text)) == message
    assert str(InputError("first line\n  second line")) == "first line second line"


def test_an_error_that_was_handled_is_not_blamed():
    text = (
        "Traceback:\ntransforms.errors.InputError: handled\n\n"
        "During handling of the above exception, another exception occurred:\n\nTraceback:\nKeyError: 'x'"
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


DATAFLOW = {"runner": "DataflowRunner", "project": "my-project-1", "region": "europe-west1", "temp_location": "gs://bucket/tmp"}


def dataflow(**flags: str | None) -> list[str]:
    return [f"--{name}={value}" for name, value in {**DATAFLOW, **flags}.items() if value is not None]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"project": None}, "also needs --project: "),
        ({"region": None, "temp_location": None}, "also needs --region, --temp_location: "),
        ({"temp_location": "gs://Bad_Bucket!/x"}, "--temp_location='gs://Bad_Bucket!/x' cannot be one: expected gs://BUCKET/DIRECTORY"),
        ({"temp_location": "/tmp/x"}, "--temp_location='/tmp/x' cannot be one"),
        ({"staging_location": "gs://b/x"}, "--staging_location='gs://b/x' cannot be one"),
        ({"project": "My Project"}, "--project='My Project' cannot be one: expected an id"),
        ({"region": "europe-west1-b"}, "--region='europe-west1-b' cannot be one"),
        ({"job_name": "Nightly_1"}, "--job_name='Nightly_1' cannot be one"),
    ],
)
def test_what_dataflow_lacks_is_told_before_anything_is_loaded(
    flags: dict[str, str | None], told: str, tracin: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.inputs.prepare_model", lambda *_: pytest.fail("the checkpoints were looked for"))
    outcome = tracin("features", "--examples=a*", "--checkpoints=b*", "--output=gs://bucket/out", *dataflow(**flags))
    assert outcome.status == 2
    assert told in outcome.err and len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    "flags", [{}, {"project": "example.com:my-project-1"}, {"temp_location": "gs://my.bucket_1"}, {"job_name": "nightly-1"}]
)
def test_what_dataflow_can_take_is_taken(flags: dict[str, str]) -> None:
    options = runner.beam_options(dataflow(**flags))
    assert options.get_all_options()["region"] == "europe-west1"
