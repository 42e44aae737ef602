"""Files that an attempt finished before it died are taken over by the next."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.conftest import UNITS, Outcome, Tiny, damage, example, write_records
from tests.fakes.models import dying_at
from tests.stage_one import assert_same_features, extract_set, read_rejects, read_set
from transforms.runtime import counters
from transforms.storage import filesystems

Run = Callable[..., Outcome]


@pytest.fixture
def died(extract: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """A run over four files of which two were finished when it died; gives what runs it again."""
    payloads = tiny.payloads()
    payloads[8] = example(image=[1.0], label=0, id="too small")
    for shard in range(4):
        write_records(tmp_path / "in" / f"s-{shard}", payloads[shard::4])

    def again(*words: str, output: str = "out") -> Outcome:
        return extract(
            tmp_path / "in" / "s-*",
            "--batch_size=4",
            "--max_rejected_fraction=0.1",
            *words,
            output=output,
        )

    with pytest.raises(Exception, match="the worker died"):
        extract_set(
            tiny.paths,
            tmp_path / "in" / "s-*",
            tmp_path / "out",
            kind=dying_at(3),
            batch_size=4,
            max_rejected_fraction=0.1,
        )
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(list((tmp_path / "out").glob("finished-*"))) == 2
    # What it had begun is given up; had it been killed, it would still be there.
    assert not list((tmp_path / "out").glob(".*"))
    filesystems.NewFile(str(tmp_path / "out"), "features-00002-0000000000-killed.tfrecord").add(
        b"half a record"
    )
    return again


def test_a_run_takes_over_the_files_that_a_dead_attempt_finished(
    died: Run, tmp_path: pathlib.Path
) -> None:
    outcome = died()
    counts = counters.snapshot()
    assert (
        counts["examples-reused"] == 20
        and counts["examples-extracted"] + counts.get("examples-rejected", 0) == 20
    )
    assert "read 20 examples, took over 20 that an earlier attempt had finished" in outcome.out
    assert counts["example-bytes-read"] == sum(
        path.stat().st_size for path in (tmp_path / "in").iterdir()
    )
    assert died(output="whole").status == 0
    (manifest, records, _), (_, expected, _) = (
        read_set(tmp_path / "out"),
        read_set(tmp_path / "whole"),
    )
    assert records.example_ids.tolist() == expected.example_ids.tolist()
    assert_same_features(records, expected)
    assert manifest.counts == {"examples": 39, "rejected": 1} and [
        r.example_id for r in read_rejects(tmp_path / "out")
    ] == ["too small"]
    # The records of finished files are deleted by the commit.
    assert {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()} == {
        "features",
        "rejected",
        "manifest.json",
    }


def test_a_damaged_part_of_a_dead_attempt_is_computed_again(
    died: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished = sorted((tmp_path / "out").glob("finished-*"))[0].stem.split("-")[-1]
    (part,) = (tmp_path / "out").glob(f"features-{finished}-*")
    damage(part, 100)
    assert died().status == 0
    assert counters.snapshot()["examples-reused"] == 10
    (message,) = [
        record.getMessage()
        for record in caplog.records
        if record.name == "transforms.extraction.feature_files.resume"
    ]
    assert "what an earlier attempt left of it is not used" in message and "is damaged" in message
    assert len(read_set(tmp_path / "out")[1]) == 39


def test_files_that_were_finished_with_other_settings_are_not_taken_over(
    died: Run, tmp_path: pathlib.Path
) -> None:
    assert died("--include_bias=false").status == 0
    assert "examples-reused" not in counters.snapshot()
    manifest, records, _ = read_set(tmp_path / "out")
    assert manifest.units == records.activations.shape[2] == UNITS
    assert not list((tmp_path / "out").glob("finished-*"))
