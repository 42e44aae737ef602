"""Records of a file at some offsets."""

from __future__ import annotations

import pathlib

from tests.conftest import damage, write_records
from tests.sample_examples import floats, input_file
from transforms.examples.records import first_records, records_at


def test_the_first_records_are_the_first_readable_ones(tmp_path: pathlib.Path) -> None:
    records = floats(3)
    path = write_records(tmp_path / "a", records)
    damage(path, 20)
    assert first_records(input_file(path), 1) == records[1:2]
    assert first_records(input_file(path), 9) == records[1:]
    assert first_records(input_file(write_records(tmp_path / "b", [])), 5) == []
    (tmp_path / "c").write_bytes(b"not a TFRecord file at all")
    assert first_records(input_file(tmp_path / "c"), 5) == []


def test_records_are_found_by_their_offsets(tmp_path: pathlib.Path) -> None:
    records = floats(5)
    path = write_records(tmp_path / "a", records)
    assert records_at(str(path), [3, 0]) == {0: records[0], 3: records[3]}
    assert records_at(str(path), []) == {}
    # A damaged record, and one beyond the end, are missing.
    damage(path, 20)
    assert records_at(str(path), [0, 4, 5]) == {4: records[4]}
