"""Beam's flags for a Dataflow job, checked before anything is loaded."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from pipeline.flags import dataflow
from tests.conftest import Outcome

Run = Callable[..., Outcome]
ROOT = pathlib.Path(__file__).parents[3]
JOB = (
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://some-bucket/tmp",
)
SCORE = ("--train_features=a", "--test_features=b", "--output=gs://some-bucket/out")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (JOB[:1], ["needs --project=PROJECT, --region=REGION, --temp_location=gs://BUCKET/tmp"]),
        ((JOB[0], *JOB[2:]), ["needs --project=PROJECT"]),
        ((*JOB[:2], JOB[3]), ["needs --region=REGION"]),
        (JOB[:3], ["needs --temp_location=gs://BUCKET/tmp"]),
        ((*JOB, "--project=1234567"), ["--project", "'1234567'"]),
        ((*JOB, "--project", "My Project"), ["--project", "'My Project'"]),
        ((*JOB, "--region=europe-west1-b"), ["--region", "'europe-west1-b'"]),
        (
            (*JOB, "--temp_location=/tmp"),
            ["--temp_location='/tmp'", "expected gs://BUCKET/DIRECTORY"],
        ),
        ((*JOB, "--temp_location=gs://some-bucket"), ["such as gs://some-bucket/tmp"]),
        ((*JOB, "--temp_location=gs:///tmp"), ["no bucket can be called ''"]),
        ((*JOB, "--temp_location=gs://Bucket/tmp"), ["no bucket can be called 'Bucket'"]),
        ((*JOB, "--temp_location=gs://-bucket/tmp"), ["'-bucket'"]),
        ((*JOB, "--temp_location=gs://ab/tmp"), ["'ab'", "3 to 63"]),
        ((*JOB, f"--temp_location=gs://{'b' * 64}/tmp"), ["3 to 63"]),
        ((*JOB, "--temp_location=gs://10.0.0.1/tmp"), ["'10.0.0.1'", "IP addresses"]),
        ((*JOB, "--temp_location=gs://my-google-bucket/tmp"), ["'google'"]),
        ((*JOB, "--staging_location=gs://a..b/tmp"), ["--staging_location", "two dots"]),
        ((*JOB, "--job_name=Nightly_1"), ["--job_name", "'Nightly_1'"]),
    ],
)
def test_what_cannot_be_a_job_is_told_in_one_line(
    tracin: Run, flags: tuple[str, ...], parts: list[str]
) -> None:
    outcome = tracin("score", *SCORE, *flags)
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith("tracin score: ") and outcome.err.count("\n") == 1, outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


def test_what_can_be_one_is_let_through() -> None:
    assert dataflow.mistake(JOB) is None
    assert (
        dataflow.mistake([*JOB[:3], "--staging_location=gs://some_bucket.example.com/a/b"]) is None
    )
    assert dataflow.mistake([word for flag in JOB for word in flag.split("=")]) is None
    assert (
        dataflow.mistake(
            [*JOB, "--project=example.com:some-project", f"--temp_location=gs://{'b' * 63}/"]
        )
        is None
    )
    assert dataflow.mistake(["--runner=FlinkRunner"]) is None


def test_it_is_told_before_anything_is_loaded() -> None:
    program = (
        "import sys; from pipeline import cli\ntry: "
        f"cli.main({['score', *SCORE, JOB[0]]})\nexcept SystemExit as e: print(e.code)\n"
    )
    program += "print(sorted({'tensorflow', 'apache_beam', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["2", "[]"]
