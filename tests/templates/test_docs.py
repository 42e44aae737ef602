"""The pages about Google Cloud name files, targets, flags and variables that exist."""

from __future__ import annotations

import re
import shlex

from pipeline.flags import parser
from templates import metadata, request
from tests.fakes.dockerfile import ROOT, TEMPLATES

NIGHTLY = "".join(
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("nightly", "nightly_operations")
)
TEXT = NIGHTLY + (TEMPLATES / "README.md").read_text()
COMMANDS = re.findall(r"^    (.+)$", NIGHTLY.replace("\\\n", ""), flags=re.MULTILINE)


def test_paths_and_targets_are_there() -> None:
    for path in re.findall(r"\btemplates/[\w./-]+[\w/]", NIGHTLY):
        if path != "templates/terraform/terraform.tfvars" and not path.startswith(
            "templates/COMMAND"
        ):
            assert (ROOT / path).exists(), path
    tables = (TEMPLATES / "README.md").read_text() + (ROOT / "docs" / "dataflow.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", tables, flags=re.MULTILINE)
    assert len(rows) > 10
    for path in re.findall(r"`([\w./]+)`", " ".join(rows)):
        assert (TEMPLATES / path).exists(), path
    for directory, target in re.findall(
        r"(?:`|^    )make (?:-C (templates) )?([a-z]+)", TEXT, flags=re.MULTILINE
    ):
        makefile = (ROOT / directory / "Makefile").read_text()
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    outputs = (TEMPLATES / "terraform" / "outputs.tf").read_text()
    for output in re.findall(r"output -raw (\w+)", TEXT):
        assert f'output "{output}"' in outputs


def test_commands_have_flags_that_there_are() -> None:
    tried = [
        shlex.split(command)[1:] for command in COMMANDS if command.startswith(".venv/bin/tracin")
    ]
    assert {words[0] for words in tried} == {"features", "audit", "show"}
    for command, *words in tried:
        parser.parse(command, words)


def test_the_jobs_that_it_launches_could_be() -> None:
    assert {
        "make -C templates validate COMMAND=features",
        "make -C templates run COMMAND=features",
    } <= set(COMMANDS)
    exported = [
        word
        for command in COMMANDS
        if "PARAMETERS" in command
        for word in shlex.split(command.split("=", 1)[1])[0].split()
    ]
    parameters = dict(word.split("=", 1) for word in exported)
    assert set(parameters) == {"id_key", "examples", "checkpoints", "output"}
    assert request.request("features", "a", "gs://b/templates", parameters, {})


def test_every_variable_that_it_names_is_one() -> None:
    variables = set(
        re.findall(
            r'^variable "(\w+)"',
            (TEMPLATES / "terraform" / "variables.tf").read_text(),
            flags=re.MULTILINE,
        )
    )
    named = set(re.findall(r"`(\w+)(?: = [^`]+)?`", NIGHTLY))
    assert {
        "worker_image",
        "paused",
        "keep_days",
        "reuse",
        "model",
        "train",
        "alert_email",
    } <= named & variables
    assert set(metadata.COMMANDS) <= {part for part in re.findall(r"`(\w+)`", TEXT)}
