"""The limit on rejects: what is beyond it fails the run, and leaves no manifest."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable

import pytest

from tests.conftest import Outcome, Tiny
from tests.sample_examples import with_bad
from tests.stage_one import assert_one_line
from transforms.examples import rejects
from transforms.storage import manifests

Run = Callable[..., Outcome]


def test_too_many_bad_records_fail_the_run_in_one_line_without_a_manifest(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = with_bad(tiny, tmp_path / "in")
    outcome = extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.1")
    assert outcome.status == 1
    # What is logged would stand on standard error, too.
    assert [
        record.name
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("apache_beam")
    ] == []
    assert_one_line(
        outcome.err,
        "7 of 40 examples were rejected",
        "--max_rejected_fraction=0.1",
        str(path),
        "/out/rejected-00000-",
    )
    assert manifests.read_if_any(str(tmp_path / "out"), "output") is None
    # The rejects can be looked at.
    rejected = [
        reject
        for file in (tmp_path / "out").glob("rejected-*.jsonl")
        for reject in rejects.from_jsonl(file.read_bytes())
    ]
    assert len(rejected) == 7


def test_the_limit_itself_is_allowed_and_holds_for_a_set_that_is_already_there(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    with_bad(tiny, tmp_path / "in")
    assert extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.175").status == 0
    stricter = extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.17")
    assert stricter.status == 2
    assert_one_line(stricter.err, "7 of 40 examples were rejected", "--max_rejected_fraction=0.17")
    assert "nothing to do" in extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.2").out
