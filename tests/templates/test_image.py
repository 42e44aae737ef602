"""The images, as far as they can be looked at where there is no container engine."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from templates import metadata
from tests.fakes.dockerfile import ROOT, TEMPLATES, Dockerfile, context, read, tracked

BIN = pathlib.Path(sys.executable).parent
IMAGE, GPU = read("Dockerfile"), read("Dockerfile.gpu", BASE="example.com/tracin:1")
BOTH = pytest.mark.parametrize("image", [IMAGE, GPU], ids=["cpu", "gpu"])

# What Beam's and Dataflow's documentation say of custom images and of Flex Templates.
BOOT = "/opt/apache/beam/boot"
LAUNCHER = "/opt/google/dataflow/python_template_launcher"


def pinned(lock: str) -> dict[str, set[str]]:
    """The versions of each package in a lock; several where they differ between Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ \\;]+)",
        (ROOT / lock).read_text(),
        flags=re.MULTILINE,
    ):
        found.setdefault(name.lower(), set()).add(version)
    return found


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_hadolint_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(
        [BIN / "hadolint", TEMPLATES / name], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@BOTH
def test_what_is_copied_is_there(image: Dockerfile) -> None:
    seen = context(ROOT / ".dockerignore")
    for copy in image.copies():
        if copy.image is None:
            for source in copy.sources:
                assert source in seen or any(path.startswith(f"{source}/") for path in seen), source


def test_a_build_sees_what_it_copies_and_nothing_else() -> None:
    copied = {
        source
        for image in (IMAGE, GPU)
        for copy in image.copies()
        if copy.image is None
        for source in copy.sources
    }
    for path in context(ROOT / ".dockerignore"):
        assert path in copied or path.split("/")[0] in copied, path
    assert "tests/conftest.py" in tracked()


@BOTH
def test_nothing_is_installed_but_by_its_hash(image: Dockerfile) -> None:
    installs = [
        part for run in image.of("RUN") for part in re.split(r"&&|\|", run) if " install " in part
    ]
    assert installs
    for install in installs:
        assert "--no-deps" in install and "--no-cache-dir" in install
        if "-r " in install:
            assert "--require-hashes" in install
            # Else pip would fetch what builds them, which no lock hashes; only what builds has
            # nothing to be built with.
            assert "--no-build-isolation" in install or "/dev/stdin" in install
        else:
            assert (
                install.split(" install ")[1].split()[-1] == "."
                and "--no-build-isolation" in install
            )
    assert any("pip check" in run for run in image.of("RUN"))
    assert not any(
        word in run for run in image.of("RUN") for word in ("apt-get", "curl", "wget", "http")
    )


@BOTH
def test_what_boot_and_the_launcher_need_is_there(image: Dockerfile) -> None:
    assert image.entry_point() == [BOOT]
    if image is IMAGE:
        assert [(copy.sources, copy.target) for copy in image.copies() if copy.image] == [
            (("/opt/apache/beam",), "/opt/apache/beam"),
            ((LAUNCHER,), LAUNCHER),
        ]
        assert dict(image.environment())["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] == "1"
    else:
        assert image.of("FROM") == ["example.com/tracin:1"]
    # It would have the launcher install packages once more at each start.
    assert "FLEX_TEMPLATE_PYTHON_REQUIREMENTS_FILE" not in dict(image.environment())


@pytest.mark.parametrize("command", metadata.COMMANDS)
def test_each_command_has_its_program(command: str) -> None:
    image = read("Dockerfile", COMMAND=command)
    program = pathlib.PurePosixPath(dict(image.environment())["FLEX_TEMPLATE_PYTHON_PY_FILE"])
    (programs,) = (copy.sources for copy in image.copies() if copy.target == f"{program.parent}/")
    assert f"pipeline/commands/{program.name}" in programs
    assert len(programs) == len(metadata.COMMANDS)
    # All commands' images are the same until the last layer.
    for one in (read("Dockerfile"), image):
        after = [instruction for instruction, _ in one.instructions[-2:]]
        assert after == ["ENV", "ENTRYPOINT"] and one.instructions[:-3] == IMAGE.instructions[:-3]


def test_base_images_are_of_the_versions_that_the_lock_has() -> None:
    bases = dict(rest.split("=", 1) for rest in IMAGE.of("ARG") if "_IMAGE=" in rest)
    (beam,) = pinned("requirements.lock")["apache-beam"]
    python = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", bases["PYTHON_IMAGE"])
    assert python
    assert bases["BEAM_IMAGE"] == f"apache/beam_python{python[1]}_sdk:{beam}"
    assert re.fullmatch(
        rf".*/python{python[1].replace('.', '')}-template-launcher-base:\d{{8}}_RC\d\d",
        bases["LAUNCHER_IMAGE"],
    )
    assert f"Programming Language :: Python :: {python[1]}" in (ROOT / "pyproject.toml").read_text()


def test_workers_with_an_accelerator_run_what_the_others_run() -> None:
    plain, gpu = pinned("requirements.lock"), pinned("requirements-gpu.lock")
    assert {name: gpu[name] for name in plain} == plain
    assert {name.split("-")[0] for name in gpu.keys() - plain.keys()} == {"nvidia"}
    dev = pinned("requirements-dev.lock")
    assert {name: dev[name] for name in plain} == plain


def test_programs_import_their_package_and_not_each_other() -> None:
    # Beside them, `import features` would be another module than `pipeline.commands.features`.
    for command in metadata.COMMANDS:
        imported = re.findall(
            r"^(?:from|import) (\S+)",
            (ROOT / "pipeline" / "commands" / f"{command}.py").read_text(),
            flags=re.MULTILINE,
        )
        assert not set(imported) & set(metadata.COMMANDS)


def test_the_package_holds_all_that_the_programs_open(tmp_path: pathlib.Path) -> None:
    sources = fill(tmp_path / "src")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        tmp_path,
        ".",
    ]
    subprocess.run(pip, cwd=tmp_path / "src", check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {path for path in sources if path.startswith(("pipeline/", "transforms/"))} <= packed
    assert not any(path.startswith(("templates/", "tests/")) for path in packed)
    assert any(path.endswith(".html.j2") for path in packed)


def fill(directory: pathlib.Path) -> list[str]:
    """Copies what a build sees to a directory; returns the paths."""
    paths = context(ROOT / ".dockerignore")
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, directory / path)
    return paths


@pytest.mark.images
def test_the_images_install_and_their_programs_start(tmp_path: pathlib.Path) -> None:
    """Every RUN of both Dockerfiles, the second over the first, in a new environment with nothing
    but what is copied.
    """
    fill(tmp_path / "src")
    template = tmp_path / "template"
    template.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    env = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    env.update(
        (name, os.environ[name])
        for name in os.environ
        if name.startswith(("PIP_", "SSL_", "REQUESTS_"))
    )
    for image in (IMAGE, GPU):
        for run in image.of("RUN"):
            # Both directories that RUN lines see are made from the same files here.
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", run],
                cwd=tmp_path / "src",
                env=env,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{run}\n{done.stdout}{done.stderr}"
        if image is IMAGE:
            for copy in image.copies():
                if copy.target == "/template/":
                    for source in copy.sources:
                        shutil.copy(ROOT / source, template)
            for command in metadata.COMMANDS:
                done = subprocess.run(
                    ["python", template / f"{command}.py", "--help"],
                    cwd=template,
                    env=env,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0 and f"usage: tracin {command}" in done.stdout, (
                    done.stderr
                )
                assert not {"matplotlib", "pytest"} & {
                    path.name for path in (tmp_path / "venv").glob("lib/*/site-packages/*")
                }
