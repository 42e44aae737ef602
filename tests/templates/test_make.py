"""templates/Makefile: what it runs, with stand-ins for gcloud and curl that note what they are
given.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from templates import metadata, request
from tests.fakes.dockerfile import ROOT, TEMPLATES

VARIABLES = {
    "PROJECT": "some-project",
    "REGION": "europe-west1",
    "BUCKET": "some-bucket",
    "REPOSITORY": "tracin",
    "TAG": "abc",
}
JOB = {
    "COMMAND": "audit",
    "PARAMETERS": "features=gs://some-bucket/features "
    "output=gs://some-bucket/audit min_suspicion=0.6",
}
IMAGE = "europe-west1-docker.pkg.dev/some-project/tracin/tracin"


def make(
    *words: str, path: pathlib.Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else dict(os.environ)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        env.pop(name, None)
    given = [f"{name}={value}" for name, value in {"PYTHON": sys.executable, **variables}.items()]
    return subprocess.run(
        ["make", "-C", TEMPLATES, *words, *given],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def tools(tmp_path: pathlib.Path) -> pathlib.Path:
    """gcloud and curl, which write what they are given, and what comes on their input, to files
    beside them.
    """
    for name in ("gcloud", "curl"):
        tool = tmp_path / name
        # curl's header is a file that is gone when it ends.
        tool.write_text(
            f"""#!/bin/bash
number=$(find {tmp_path} -name '{name}-*.args' | wc -l)
printf '%s\\n' "$@" > {tmp_path}/{name}-$number.args
for word; do [[ $word == @/dev/* ]] && cat "${{word#@}}" > {tmp_path}/header; done
[[ $* == 'auth print-access-token' ]] && echo secret-token && exit
[[ $* == *' - '* || $* == *' @- '* ]] && cat > {tmp_path}/{name}-$number.stdin
exit 0
"""
        )
        tool.chmod(0o755)
    return tmp_path


def noted(tools: pathlib.Path, name: str) -> list[tuple[list[str], str]]:
    """What a tool was given, each time: words, and input."""
    found = []
    for args in sorted(tools.glob(f"{name}-*.args")):
        stdin = args.with_suffix(".stdin")
        found.append((args.read_text().splitlines(), stdin.read_text() if stdin.exists() else ""))
    return found


@pytest.mark.parametrize("target", ["build", "stage", "run", "validate"])
def test_a_missing_variable_is_told_in_one_line(target: str) -> None:
    done = make("-n", target, **{**VARIABLES, **JOB, "REGION": ""})
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "Stop." in line)
    assert "REGION is not set: make" in line
    assert done.stdout.count("gcloud") == 0


@pytest.mark.parametrize("target", ["build", "stage", "run", "validate"])
def test_a_dry_run_shows_commands_that_bash_understands(target: str) -> None:
    done = make("-n", "--no-print-directory", target, **VARIABLES, **JOB)
    assert done.returncode == 0, done.stderr
    assert "gcloud" in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    lint = [
        pathlib.Path(sys.executable).parent / "shellcheck",
        "--shell=bash",
        "--severity=style",
        "-",
    ]
    checked = subprocess.run(lint, input=done.stdout, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_building_submits_the_checkout_with_the_images_names(tools: pathlib.Path) -> None:
    assert make("build", path=tools, **VARIABLES, GPU="yes").returncode == 0
    ((words, _),) = noted(tools, "gcloud")
    assert words[:3] == ["builds", "submit", "."]
    assert "--config=templates/cloudbuild.yaml" in words
    assert f"--substitutions=_IMAGE={IMAGE},_TAG=abc,_GPU=yes" in words


def test_the_build_makes_every_image_that_the_templates_name() -> None:
    build = yaml.safe_load((TEMPLATES / "cloudbuild.yaml").read_text())
    assert set(build["substitutions"]) == {"_IMAGE", "_TAG", "_GPU"}
    assert {one.split("=")[1] for one in build["options"]["env"]} == {
        f"${name}" for name in build["substitutions"]
    }
    (commands,) = re.findall(r"for command in (.*?); do", build["steps"][0]["script"])
    assert tuple(commands.split()) == metadata.COMMANDS
    for step in build["steps"]:
        # Cloud Build puts in what stands after one $ and is named among the substitutions.
        assert not re.search(r"\$\{?_", step["script"])
        for file in re.findall(r"--file (\S+)", step["script"]):
            assert (ROOT / file).exists()
        lint = [pathlib.Path(sys.executable).parent / "shellcheck", "--severity=style", "-"]
        checked = subprocess.run(lint, input=step["script"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_staging_puts_every_template_where_jobs_look_for_it(tools: pathlib.Path) -> None:
    assert make("stage", path=tools, **VARIABLES).returncode == 0
    staged = {words[3]: json.loads(stdin) for words, stdin in noted(tools, "gcloud")}
    assert set(staged) == {
        f"gs://some-bucket/templates/{command}.json" for command in metadata.COMMANDS
    }
    for command in metadata.COMMANDS:
        spec = staged[f"gs://some-bucket/templates/{command}.json"]
        assert spec == metadata.spec(command, f"{IMAGE}:abc-{command}", f"{IMAGE}:abc")


@pytest.mark.parametrize("target", ["run", "validate"])
def test_a_job_is_launched_or_asked_for(tools: pathlib.Path, target: str) -> None:
    more = {
        "SERVICE_ACCOUNT": "worker@some-project.iam.gserviceaccount.com",
        "MAX_WORKERS": "8",
        "JOB_NAME": "audit-1",
    }
    done = make(target, path=tools, **VARIABLES, **JOB, **more)
    assert done.returncode == 0, done.stderr
    ((words, stdin),) = noted(tools, "curl")
    assert (
        words[-1]
        == "https://dataflow.googleapis.com/v1b3/projects/some-project/locations/europe-west1/flexTemplates:launch"
    )
    assert not any("secret-token" in word for word in words)
    assert (tools / "header").read_text() == "Authorization: Bearer secret-token"
    assert json.loads(stdin) == {
        "launchParameter": {
            "jobName": "audit-1",
            "containerSpecGcsPath": "gs://some-bucket/templates/audit.json",
            "parameters": {
                "features": "gs://some-bucket/features",
                "output": "gs://some-bucket/audit",
                "min_suspicion": "0.6",
            },
            "environment": {
                "tempLocation": "gs://some-bucket/tmp",
                "serviceAccountEmail": "worker@some-project.iam.gserviceaccount.com",
                "sdkContainerImage": f"{IMAGE}:abc",
                "maxWorkers": 8,
                "additionalExperiments": ["no_use_multiple_sdk_containers"],
            },
        },
        "validateOnly": target == "validate",
    }


def test_globs_reach_the_template_as_they_are(tools: pathlib.Path) -> None:
    parameters = (
        "examples=gs://b/train-?,gs://b/[ab]* checkpoints=gs://b/*.keras "
        "output=gs://b/out loss='Sparse Loss(a)'"
    )
    assert (
        make("run", path=tools, **VARIABLES, COMMAND="features", PARAMETERS=parameters).returncode
        == 0
    )
    ((_, stdin),) = noted(tools, "curl")
    sent = json.loads(stdin)["launchParameter"]["parameters"]
    assert sent == dict(word.split("=", 1) for word in shlex.split(parameters))


def test_nothing_is_asked_where_a_parameter_is_wrong(tools: pathlib.Path) -> None:
    done = make(
        "run",
        path=tools,
        **VARIABLES,
        COMMAND="audit",
        PARAMETERS="feature=gs://b/f output=gs://b/o",
    )
    assert done.returncode != 0
    assert "the template audit has no parameter 'feature'; it has previous, " in done.stderr
    assert all(stdin == "" for _, stdin in noted(tools, "curl"))


@pytest.mark.parametrize(
    "words", [["metadata", "--spec", "audit", "--image", "i"], ["request", "--help"]]
)
def test_templates_are_made_where_nothing_is_installed(words: list[str]) -> None:
    # Without site-packages: a plain Python is enough to stage and to launch.
    module, *rest = words
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"templates.{module}", *rest],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# Requests


def asked(command: str = "score", name: str = "a", **parameters: str) -> dict[str, Any]:
    given = {
        "train_features": "gs://b/a",
        "test_features": "gs://b/b",
        "output": "gs://b/c",
        **parameters,
    }
    return request.request(command, name, "gs://b/templates/", given, {})


def test_a_request_is_checked_before_anybody_is_asked() -> None:
    assert asked()["launchParameter"]["containerSpecGcsPath"] == "gs://b/templates/score.json"
    for wrong, told in (
        ({"k": "none"}, "k='none' does not match"),
        ({"kay": "1"}, "no parameter 'kay'"),
        ({"output": "/tmp/out"}, "output='/tmp/out' does not match"),
        ({"name": "Nightly_1"}, "--job_name: expected up to 63 small letters"),
    ):
        with pytest.raises(request.Refused, match=told):
            asked(**wrong)
    with pytest.raises(
        request.Refused, match="the template score needs train_features, test_features"
    ):
        request.request("score", "a", "gs://b/t", {"output": "gs://b/o"}, {})
    with pytest.raises(request.Refused, match="no bucket can be called"):
        request.request(
            "audit", "a", "gs://b/t", {"output": "gs://b/o"}, {"tempLocation": "gs://B/tmp"}
        )


def test_what_is_wrong_with_a_request_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["score", "--job_name=a", "--templates=gs://b/t"]
    assert request.main([*words, "train_features"]) == 2
    assert (
        capsys.readouterr().err
        == "templates.request: expected NAME=VALUE, found 'train_features'\n"
    )
    assert request.main([*words, "k=3"]) == 2
    assert (
        capsys.readouterr().err
        == "templates.request: the template score needs train_features, test_features, output\n"
    )
