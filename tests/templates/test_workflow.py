"""The nightly workflow: its steps by their text, its arguments by running the command with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipeline.nightly.command import EXIT_STATUS
from pipeline.nightly.run import Outcome
from tests.fakes import object_store
from tests.fakes.dockerfile import TEMPLATES
from tests.fakes.nights import OUTCOME, ROOT, World

TEXT = (TEMPLATES / "workflow.yaml").read_text()
STEPS: dict[str, Any] = {
    name: step for one in yaml.safe_load(TEXT)["main"]["steps"] for name, step in one.items()
}
# The values of what the workflow computes, for the night of the tests.
VALUES = {
    '${"--date=" + date}': "--date=2026-11-25",
    '${"--execution=" + execution}': "--execution=some-execution",
}


def expressions(value: Any) -> Iterator[str]:
    """Every expression below a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from expressions(one)
    elif isinstance(value, str) and "${" in value:
        yield value


def test_it_has_a_few_steps_and_no_logic_of_a_night() -> None:
    assert list(STEPS) == ["settle", "run", "read_outcome", "decide", "tell"]
    assert len(TEXT.splitlines()) <= 60 and "dataflow" not in TEXT
    # The longest expression that a workflow may have is of 400 characters.
    found = list(expressions(list(STEPS.values())))
    assert found and all(len(expression) <= 400 for expression in found)
    known = {"args", "date", "execution", "job", "failure", "error", "outcome"}
    functions = {"default", "map", "text", "time", "sys", "json", "http", "if"}
    for expression in found:
        (code,) = re.findall(r"^\$\{(.*)\}$", expression)
        names = re.findall(r"(?<![\w.])[a-z_]\w*", re.sub(r'"[^"]*"', "", code))
        assert set(names) <= known | functions | {"null", "or"}, expression


def test_the_cloud_run_job_is_run_and_waited_for() -> None:
    call = STEPS["run"]["try"]
    assert call["call"] == "googleapis.run.v2.projects.locations.jobs.run"
    # A task has seven days at most and is started three times more, which Terraform says.
    terraform = (TEMPLATES / "terraform" / "main.tf").read_text()
    (timeout,) = re.findall(r'timeout += "(\d+)s"', terraform)
    (retries,) = re.findall(r"max_retries += (\d+)", terraform)
    assert int(timeout) == 7 * 24 * 3600
    assert call["args"]["connector_params"] == {"timeout": int(timeout) * (1 + int(retries))}
    (job,) = (one["job"] for one in STEPS["settle"]["assign"] if "job" in one)
    (name,) = re.findall(r'/jobs/([\w-]+)"\}$', job)
    (resource,) = re.findall(
        r'resource "google_cloud_run_v2_job" "nightly" \{\n  name += "([\w-]+)"', terraform
    )
    assert name == resource


def test_the_command_runs_with_the_workflows_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    (override,) = STEPS["run"]["try"]["args"]["body"]["overrides"]["containerOverrides"]
    assert set(override) == {"args"}
    argument, *words = override["args"]
    assert argument == "${json.encode_to_string(args)}"
    with object_store.running() as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{store.host}")
        ended = World(store).night(*(VALUES[word] for word in words))
    assert ended.status == 0 and ended.outcome["results"] == ROOT
    assert ended.outcome["execution"] == "some-execution"


def test_the_outcome_that_it_reads_is_the_one_that_the_command_writes() -> None:
    url = STEPS["read_outcome"]["try"]["args"]["url"]
    values = {"args.bucket": "some-bucket", "args.prefix": "nightly", "date": "2026-11-25"}
    parts = [part.strip() for part in url[2:-1].split(" + ")]
    joined = "".join(values.get(part, part.strip('"')) for part in parts)
    assert joined == f"https://storage.googleapis.com/some-bucket/{OUTCOME}"
    assert STEPS["read_outcome"]["try"]["args"]["auth"] == {"type": "OAuth2"}
    fields = set(re.findall(r"outcome\.body\.(\w+)", TEXT))
    assert fields == {"execution", "status", "message"}
    assert fields <= {field.name for field in dataclasses.fields(Outcome)}
    compared = set(re.findall(r'outcome\.body\.status == "(\w+)"', TEXT))
    assert compared <= {*EXIT_STATUS, "running"}


def test_an_execution_ends_as_the_night_ended() -> None:
    succeeded, unfinished = STEPS["decide"]["switch"]
    assert succeeded == {"condition": "${failure == null}", "return": "${outcome.body}"}
    # An outcome of another execution, or of one that got to no end, says nothing of this one.
    assert unfinished["raise"] == "${failure}"
    assert unfinished["condition"] == (
        '${outcome.body.execution != execution or outcome.body.status == "running" '
        'or outcome.body.status == "done"}'
    )
    assert STEPS["tell"]["raise"] == {
        "message": "${outcome.body.message}",
        "tags": ['${if(outcome.body.status == "drift", "Drift", "Failed")}'],
        "outcome": "${outcome.body}",
    }
    assert STEPS["read_outcome"]["except"]["steps"] == [
        {"no_outcome": {"raise": "${default(failure, error)}"}}
    ]
