"""The command line of a night: exit statuses, and whose credentials it uses."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError

from pipeline.nightly.argument import read_argument
from pipeline.nightly.command import EXIT_STATUS, connect, main
from tests.fakes.nights import argument
from transforms.core.errors import InputError


def config(**changes: Any) -> Any:
    return read_argument(json.dumps(argument(**changes)), None, "2026-11-25")


@pytest.mark.parametrize(
    "words", [["{}"], ["nowhere.json"], [json.dumps(argument()), "--date=yesterday"]]
)
def test_a_wrong_argument_is_exit_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(config: Any) -> Any:
        raise AssertionError("nobody is asked")

    assert main(words, connect) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pipeline.nightly: ")


def test_without_credentials_nothing_is_launched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(**_: Any) -> Any:
        raise DefaultCredentialsError("no credentials were found")

    monkeypatch.setattr(google.auth, "default", nothing)
    assert main([json.dumps(argument())]) == 1
    assert "no credentials were found" in capsys.readouterr().err


def test_the_project_is_the_arguments_else_that_of_the_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(google.auth, "default", lambda scopes: (AnonymousCredentials(), None))
    # It protects from a first request that fails hours later.
    connect(config())
    with pytest.raises(InputError, match="`project` is not set"):
        connect(config(project=None))
    monkeypatch.setattr(google.auth, "default", lambda scopes: (AnonymousCredentials(), "other"))
    connect(config(project=None))


def test_the_help_names_every_exit_status() -> None:
    words = [sys.executable, "-m", "pipeline.nightly", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    for status in (*EXIT_STATUS.values(), 2):
        assert f"\n  {status}  " in done.stdout
    assert "usage: python -m pipeline.nightly" in done.stdout


def test_the_command_starts_without_beam_and_tensorflow() -> None:
    code = (
        "import sys, pipeline.nightly.command; "
        "sys.exit(bool({'apache_beam', 'tensorflow', 'numpy'} & sys.modules.keys()))"
    )
    # A container of half a gigabyte runs it.
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
