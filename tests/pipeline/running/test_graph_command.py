"""The skeleton of commands: which parts run, in which order, and how each way ends."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import apache_beam as beam
import pytest

from pipeline.flags.messages import with_flags
from pipeline.running.command import Command, Invocation
from pipeline.running.graph_command import GraphCommand
from pipeline.running.outcomes import RunFailed
from pipeline.running.progress import Stage
from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.manifests import Manifest

SETTINGS = {"k": 10}
DRAFT = Manifest("influence", manifests.fingerprint(SETTINGS), SETTINGS, (), {})


def fail(element: int) -> int:
    raise InputError("`k` is wrong")


@dataclasses.dataclass(frozen=True)
class Report(GraphCommand):
    """A command with the flags of `tracin score` that reports its parts as they run."""

    name: ClassVar[str] = "score"
    fails: ClassVar[bool] = False

    @classmethod
    def prepare(cls, invocation: Invocation) -> Report:
        print("prepare", invocation.args.k)
        return cls(invocation, DRAFT, None)

    def announce(self) -> None:
        print("announce")

    def build(self, pipeline: beam.Pipeline) -> None:
        print("build")
        numbers = pipeline | "Create" >> beam.Create([1])
        if self.fails:
            numbers | "Fail" >> beam.Map(fail)

    def stages(self) -> Sequence[Stage]:
        print("stages")
        return []

    def explain_failure(self) -> None:
        print("explain")

    def summarise(self, counts: Mapping[str, int]) -> None:
        print("summarise", dict(counts))


class Failing(Report):
    """The same, whose graph fails."""

    fails = True


@pytest.fixture
def words(tmp_path: pathlib.Path) -> list[str]:
    return ["--train_features=a", "--test_features=b", f"--output={tmp_path / 'out'}"]


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


def test_a_command_runs_its_parts(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert Report.main([*words, "--k=3"]) == 0
    assert printed(capsys) == (["prepare 3", "announce", "stages", "build", "summarise {}"], "")


def test_a_complete_result_is_skipped(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    output = words[-1].removeprefix("--output=")
    manifests.write(output, DRAFT)
    assert Report.main(words) == 0
    line = f"{output} is complete with the same settings: nothing to do"
    assert printed(capsys) == (["prepare 10", line], "")
    assert Report.main([*words, "--overwrite"]) == 0
    assert "summarise {}" in printed(capsys)[0]


def test_a_result_with_other_settings_is_not_replaced(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"k": 11}
    output = words[-1].removeprefix("--output=")
    manifests.write(output, Manifest("influence", manifests.fingerprint(other), other, (), {}))
    assert Report.main(words) == 2
    out, err = printed(capsys)
    assert out == ["prepare 10"]
    assert "complete with other settings" in err and "pass --overwrite" in err


def test_a_failed_run_is_explained(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert Failing.main(words) == 1
    out, err = printed(capsys)
    assert out == ["prepare 10", "announce", "stages", "build", "explain"]
    # The library names the setting, the command line the flag.
    assert err == f"tracin score: failed: {with_flags('`k` is wrong')}\n"


class Refusing(Command):
    """A command that cannot be prepared, or whose run fails."""

    name = "show"

    @classmethod
    def prepare(cls, invocation: Invocation) -> Refusing:
        if invocation.args.directory == "wrong":
            raise InputError("`rows` is wrong")
        return cls()

    def execute(self) -> None:
        raise RunFailed("it broke")


@pytest.mark.parametrize(
    ("directory", "status", "line"),
    [
        ("wrong", 2, "tracin show: --rows is wrong\n"),
        ("right", 1, "tracin show: failed: it broke\n"),
    ],
)
def test_mistakes_end_a_command_with_one_line(
    capsys: pytest.CaptureFixture[str], directory: str, status: int, line: str
) -> None:
    assert Refusing.main([directory]) == status
    assert capsys.readouterr().err == line


def test_an_unknown_flag_ends_before_the_preparation(capsys: pytest.CaptureFixture[str]) -> None:
    assert Refusing.main(["right", "--number_of_wrokers=3"]) == 2
    assert "unknown flag --number_of_wrokers=3" in capsys.readouterr().err
