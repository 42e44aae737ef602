"""docs/nightly.md and templates/README.md name what is there."""

from __future__ import annotations

import re
import shlex

import pytest

from pipeline.flags import parser
from templates import metadata, request
from tests.fakes.dockerfile import ROOT, TEMPLATES

NIGHTLY = (ROOT / "docs" / "nightly.md").read_text()
TEXT = NIGHTLY + (TEMPLATES / "README.md").read_text()
COMMANDS = re.findall(r"^    (.+)$", NIGHTLY, flags=re.MULTILINE)


def test_paths_and_targets_are_there() -> None:
    for path in re.findall(r"\btemplates/[\w./-]+[\w/]", NIGHTLY):
        if path != "templates/terraform/terraform.tfvars" and not path.startswith(
            "templates/COMMAND"
        ):
            assert (ROOT / path).exists(), path
    for path in re.findall(
        r"^\| `([\w./]+)` \|", (TEMPLATES / "README.md").read_text(), flags=re.MULTILINE
    ):
        assert (TEMPLATES / path).exists(), path
    for directory, target in re.findall(
        r"(?:`|^    )make (?:-C (templates) )?([a-z]+)", TEXT, flags=re.MULTILINE
    ):
        makefile = (ROOT / directory / "Makefile").read_text()
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    outputs = (TEMPLATES / "terraform" / "outputs.tf").read_text()
    for output in re.findall(r"output -raw (\w+)", TEXT):
        assert f'output "{output}"' in outputs
    for anchor in re.findall(r"\]\(#([\w-]+)\)", NIGHTLY):
        assert anchor in {
            heading.lower().replace(" ", "-")
            for heading in re.findall(r"^## (.*)$", NIGHTLY, flags=re.MULTILINE)
        }


def test_commands_have_flags_that_there_are() -> None:
    tried = [
        shlex.split(command)[1:] for command in COMMANDS if command.startswith(".venv/bin/tracin")
    ]
    assert {words[0] for words in tried} == {"features", "audit"}
    for command, *words in tried:
        parser.parse(command, words)


@pytest.mark.parametrize("target", ["validate", "run"])
def test_the_jobs_that_it_launches_could_be(target: str) -> None:
    (command,) = (
        command for command in COMMANDS if command.startswith(f"make -C templates {target}")
    )
    given = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)
    parameters = dict(word.split("=", 1) for word in shlex.split(given["PARAMETERS"]))
    assert request.request(given["COMMAND"], "a", "gs://b/templates", parameters, {})


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
