"""Feature sets asked for: checked before a graph runs, read where they are complete."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.conftest import Outcome, Tiny, write_records
from tests.stage_one import assert_one_line, extract_set, read_set, stage_one
from transforms.core.errors import InputError
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


def test_a_set_is_asked_for_before_a_graph_runs_and_is_then_complete(
    tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    write_records(tmp_path / "in" / "s-0", tiny.payloads())
    write_records(tmp_path / "in" / "s-1", [])
    asked = tiny.paths, tmp_path / "in" / "*", tmp_path / "out"
    stage = stage_one(*asked)
    assert not stage.complete and stage.empty_files == (str(tmp_path / "in" / "s-1"),)
    assert stage.bytes_to_read == (tmp_path / "in" / "s-0").stat().st_size
    extract_set(*asked)
    before = stamps(tmp_path / "out")
    assert stage_one(*asked).complete
    extract_set(*asked)
    assert stamps(tmp_path / "out") == before


def test_a_base_in_the_place_of_the_new_set_is_refused(tiny: Tiny, tmp_path: pathlib.Path) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    with pytest.raises(InputError, match="is where the new set would go") as caught:
        stage_one(tiny.paths, examples, tmp_path / "out", base=f"{tmp_path}/./out/")
    assert caught.value.field == "base"


def test_a_stricter_limit_holds_for_a_set_that_is_complete(
    tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = [*tiny.payloads()[:9], b"no example"]
    asked = tiny.paths, write_records(tmp_path / "examples", payloads), tmp_path / "out"
    extract_set(*asked, max_rejected_fraction=0.1)
    assert stage_one(*asked, max_rejected_fraction=0.1).complete
    with pytest.raises(InputError, match="1 of 10 examples were rejected") as caught:
        stage_one(*asked, max_rejected_fraction=0.09)
    assert caught.value.field == "max_rejected_fraction"
