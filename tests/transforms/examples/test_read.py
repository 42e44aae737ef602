"""Files read as batches, in order, with what is damaged in them."""

from __future__ import annotations

import pathlib

import pytest

from tests.conftest import damage, write_records
from tests.sample_examples import FORM, floats, ids, input_file
from transforms.core.errors import InputError
from transforms.examples import rejects
from transforms.examples.read import read_examples


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_a_file_is_read_in_order_in_batches(
    tmp_path: pathlib.Path, batch_size: int, compression: str
) -> None:
    path = write_records(tmp_path / "a", floats(7), compression)
    batches = list(read_examples(input_file(path), FORM, batch_size, False))
    assert [len(batch.offsets) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert [offset for batch in batches for offset in batch.offsets] == list(range(7))
    assert [example_id for batch in batches for example_id in ids(batch)] == [
        f"train/a#{i}" for i in range(7)
    ]
    assert sum(batch.bytes_read for batch in batches) == path.stat().st_size


def test_a_damaged_payload_is_a_reject_and_the_others_keep_their_indices(
    tmp_path: pathlib.Path,
) -> None:
    records = floats(7)
    path = write_records(tmp_path / "a", records)
    damage(path, sum(len(record) + 16 for record in records[:3]) + 20)
    batches = list(read_examples(input_file(path), FORM, 2, False))
    assert [offset for batch in batches for offset in batch.offsets] == [0, 1, 2, 4, 5, 6]
    (reject,) = [reject for batch in batches for reject in batch.rejects]
    assert (reject.source, reject.offset, reject.reason) == (str(path), 3, rejects.BAD_CHECKSUM)


def test_a_file_without_records_gives_one_empty_last_batch(tmp_path: pathlib.Path) -> None:
    (batch,) = read_examples(input_file(write_records(tmp_path / "a", [])), FORM, 4, False)
    assert batch.last and ids(batch) == [] and batch.rejects == []


def truncated(tmp_path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A file of five records whose last one is cut, and where that one starts."""
    records = floats(5)
    path = write_records(tmp_path / "a", records)
    path.write_bytes(path.read_bytes()[:-9])
    return path, sum(len(record) + 16 for record in records[:4])


def test_a_truncated_file_ends_the_run_and_says_where(tmp_path: pathlib.Path) -> None:
    path, start = truncated(tmp_path)
    with pytest.raises(InputError) as caught:
        list(read_examples(input_file(path), FORM, 2, False))
    message = str(caught.value)
    assert (
        str(path) in message
        and f"record 4 at byte {start}" in message
        and "`allow_truncated_files`" in message
    )


def test_a_truncated_file_is_used_as_far_as_it_goes_where_allowed(tmp_path: pathlib.Path) -> None:
    path, start = truncated(tmp_path)
    batches = list(read_examples(input_file(path), FORM, 2, True))
    assert [offset for batch in batches for offset in batch.offsets] == [0, 1, 2, 3]
    (reject,) = batches[-1].rejects
    assert (reject.offset, reject.reason) == (4, rejects.UNREADABLE_TAIL)
    assert f"from byte {start} on" in reject.detail
