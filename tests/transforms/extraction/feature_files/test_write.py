"""Batches written as files of a set, which the commit makes the only ones."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np

from tests.conftest import Outcome, Tiny, write_records
from tests.stage_one import assert_same_features, extract_set, read_set
from transforms.examples import rejects
from transforms.examples.format import InputFile
from transforms.extraction.feature_files.feature_batch import NO_FEATURES, FeatureBatch
from transforms.extraction.feature_files.part import FileLimits
from transforms.extraction.feature_files.write import PartWriter
from transforms.extraction.tuning import ExtractionTuning

Run = Callable[..., Outcome]


def test_feature_files_are_cut_at_a_number_of_records(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    assert extract(examples, output="whole").status == 0
    tuning = ExtractionTuning(file_limits=FileLimits(records=9))
    extract_set(tiny.paths, examples, tmp_path / "cut", tuning=tuning, batch_size=16)
    manifest, records, _ = read_set(tmp_path / "cut")
    assert [file.count for file in manifest.files] == [9, 9, 9, 9, 4]
    assert_same_features(records, read_set(tmp_path / "whole")[1])


def test_files_of_a_dead_attempt_are_not_read_and_are_deleted_by_the_commit(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    left = tmp_path / "out" / "features-00000-0000000000-deadbeef.tfrecord"
    write_records(left, [b"half a record"])
    assert extract(write_records(tmp_path / "examples", tiny.payloads())).status == 0
    manifest, records, _ = read_set(tmp_path / "out")
    assert left.name not in {file.name for file in manifest.files}
    # A person who reads `features-*` must not find it either.
    assert not left.exists()
    assert len(records) == manifest.examples == 40


def test_a_file_whose_beginning_went_elsewhere_does_not_count_as_finished(
    tmp_path: pathlib.Path,
) -> None:
    # As on a runner that splits the chain between extracting and writing.
    file = InputFile(0, "in", "in", 1)
    reject = rejects.Reject("in", 3, None, rejects.BAD_CHECKSUM, "…")
    for first, expected in ((False, 0), (True, 1)):
        writer = PartWriter(str(tmp_path), "0" * 32, "float32")
        nothing = np.empty(0, int), np.empty((0, 16), np.uint8), {}
        writer.add(FeatureBatch(file, NO_FEATURES, *nothing, [reject], first, last=True))
        writer.end()
        assert len(list(tmp_path.glob("finished-*"))) == expected
