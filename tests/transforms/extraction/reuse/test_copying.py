"""Records that are copied to another file name the places where their examples are now."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tests.conftest import Outcome, Tiny, write_records
from tests.stage_one import records_by_id
from transforms.extraction.reuse.copying import relocate
from transforms.storage.records import feature_record

Run = Callable[..., Outcome]


def test_records_of_moved_examples_differ_in_their_origin_alone(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    path = write_records(tmp_path / "a" / "s-0", tiny.payloads()[:4])
    assert extract("a", "one").status == 0
    records = list(records_by_id(tmp_path / "one")[1].values())
    # In place they stay as they are, to the byte.
    same, example_ids = relocate(records, str(path), range(4))
    assert same == records and example_ids == [b"ex-00", b"ex-01", b"ex-02", b"ex-03"]
    moved, _ = relocate(records, "elsewhere/é", [7, 8, 9, 20])
    assert [(one.source, one.offset) for one in feature_record.origins(moved)] == [
        ("elsewhere/é", offset) for offset in (7, 8, 9, 20)
    ]
    assert relocate(moved, str(path), range(4))[0] == records
