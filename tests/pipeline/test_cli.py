"""The command line before anything heavy is imported, and what starts it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable

from pipeline.flags.declarations.commands import COMMANDS
from tests.conftest import Outcome

Run = Callable[..., Outcome]
ROOT = pathlib.Path(__file__).parents[2]

# In a new process, since this one has imported everything. All at once, because a process costs
# more than an answer.
HEAVY = """
import contextlib, io, sys
from pipeline import cli
from pipeline.flags.declarations.commands import COMMANDS
wrong = [["score"], ["plan", "--outputs=3"], ["features", "--exmaples=x"], ["nonsense"]]
for words in [[c, "--help"] for c in COMMANDS] + [["--help"], ["--version"], *wrong]:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            status = cli.main(words)
        except SystemExit as error:
            status = error.code
    print(status, *words, "|", len(told.getvalue()))
heavy = {"tensorflow", "keras", "apache_beam", "numpy", "pyarrow", "matplotlib", "sklearn"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


def test_help_and_mistakes_are_answered_without_importing_anything_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAVY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *answers, heavy = done.stdout.splitlines()
    assert heavy == "heavy: []"
    expected = [f"0 {command} --help" for command in COMMANDS] + [
        "0 --help",
        "0 --version",
        "2 score",
        "2 plan --outputs=3",
        "2 features --exmaples=x",
        "2 nonsense",
    ]
    assert [answer.split(" |")[0] for answer in answers] == expected
    assert all(int(answer.split("|")[1]) > 10 for answer in answers)


def test_the_usage_names_every_command(tracin: Run) -> None:
    outcome = tracin("--help")
    assert outcome.status == 0
    assert all(command in outcome.out for command in COMMANDS)


def test_an_unknown_command_is_told_with_those_there_are(tracin: Run) -> None:
    outcome = tracin("scores")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "there is no command 'scores'" in outcome.err
    assert all(command in outcome.err for command in COMMANDS)


def test_the_package_runs_as_a_module(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("tracin-beam ")


def test_a_closed_pipe_ends_the_program_without_a_trace() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m pipeline --help | true; echo ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")
