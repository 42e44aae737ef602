"""The step over batches: several at once, handed on in order."""

from __future__ import annotations

import pathlib

import pytest

from tests.conftest import Tiny, write_records
from tests.fakes.models import SlowModel
from tests.stage_one import extract_set, read_set
from transforms.extraction.tuning import ExtractionTuning


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["one after the other", "at once"])
def test_batches_extracted_at_once_are_written_in_their_order(
    tiny: Tiny, tmp_path: pathlib.Path, seconds: float
) -> None:
    SlowModel.most = 0
    examples = write_records(tmp_path / "examples", tiny.payloads())
    extract_set(
        tiny.paths,
        examples,
        tmp_path / "out",
        kind=SlowModel,
        batch_size=4,
        tuning=ExtractionTuning(long_batch_seconds=seconds),
    )
    assert read_set(tmp_path / "out")[1].example_ids.tolist() == [
        f"ex-{i:02d}".encode() for i in range(40)
    ]
    assert SlowModel.most == (2 if seconds else 1)
