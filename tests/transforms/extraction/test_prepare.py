"""Sets that are complete, and what asks for them again."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tests.conftest import (
    Outcome,
    Tiny,
    write_records,
)
from tests.stage_one import (
    assert_one_line,
    read_set,
)
from transforms.storage import manifests

Run = Callable[..., Outcome]


def stamps(directory: pathlib.Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_a_rerun_does_nothing_and_other_settings_need_overwrite(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    assert extract(examples).status == 0
    before = stamps(tmp_path / "out")

    again = extract(examples)
    assert again.status == 0 and "nothing to do" in again.out
    assert stamps(tmp_path / "out") == before

    # What does not change the features does not ask for them again.
    assert "nothing to do" in extract(examples, "--batch_size=3", "--learning_rates=1,2,3").out

    other = extract(examples, "--labels=predicted")
    assert other.status == 2
    assert_one_line(other.err, 'labels was "given", is "predicted"', "--overwrite")
    assert stamps(tmp_path / "out") == before

    replaced = extract(examples, "--labels=predicted", "--overwrite")
    assert replaced.status == 0
    after = stamps(tmp_path / "out")
    assert set(before) & set(after) == {manifests.FILE_NAME}
    assert read_set(tmp_path / "out")[0].settings["labels"] == "predicted"


def test_changed_examples_are_other_settings(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "examples"
    assert extract(write_records(path, tiny.payloads()[:5])).status == 0
    outcome = extract(write_records(path, tiny.payloads()[:6]))
    assert outcome.status == 2
    assert_one_line(outcome.err, "complete with other settings (examples ", "size was")
