"""TFRecord framing against TensorFlow's own writer and reader, and against damage at every byte."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import damage, write_records
from transforms.storage.records import tfrecords
from transforms.storage.records.tfrecords import (
    UnreadableTail,
    frame,
    join_frames,
    pick_frames,
    read_frames,
    split_frames,
)

PAYLOADS = [b"first", b"", b"the third one", bytes(range(200))]
BORDERS = [0]
for payload in PAYLOADS:
    BORDERS.append(BORDERS[-1] + len(payload) + 16)


def collect(
    data: bytes, chunk_bytes: int = tfrecords.CHUNK_BYTES
) -> tuple[list[bytes | None], UnreadableTail | None]:
    """The payloads of a stream, and what ended it if it did not end well."""
    payloads: list[bytes | None] = []
    try:
        for some in read_frames(io.BytesIO(data), chunk_bytes):
            payloads += some
    except UnreadableTail as tail:
        return payloads, tail
    return payloads, None


# Against TensorFlow


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_reads_what_tensorflow_writes(tmp_path: pathlib.Path, compression: str) -> None:
    path = write_records(tmp_path / "a", PAYLOADS, compression)
    assert collect(path.read_bytes()) == (PAYLOADS, None)


@settings(max_examples=30, deadline=None)
@given(payloads=st.lists(st.binary(max_size=300), max_size=12))
def test_writes_the_bytes_that_tensorflow_writes(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]
) -> None:
    path = write_records(tmp_path_factory.mktemp("frames") / "a", payloads)
    assert join_frames(payloads) == path.read_bytes()


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_tensorflow_reads_what_it_writes(tmp_path: pathlib.Path, compression: str) -> None:
    data = join_frames(PAYLOADS)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(data) if compression else data)
    assert [t.numpy() for t in tf.data.TFRecordDataset(str(path), compression)] == PAYLOADS


@settings(max_examples=50, deadline=None)
@given(payloads=st.lists(st.binary(max_size=300), max_size=12), zipped=st.booleans())
def test_payloads_survive_a_round_trip(payloads: list[bytes], zipped: bool) -> None:
    data = join_frames(payloads)
    assert collect(gzip.compress(data) if zipped else data) == (payloads, None)


def test_a_name_does_not_decide_compression_and_gzip_members_follow_each_other() -> None:
    zipped = gzip.compress(join_frames(PAYLOADS[:2])) + gzip.compress(join_frames(PAYLOADS[2:]))
    assert collect(zipped) == (PAYLOADS, None)


def test_a_plain_file_whose_first_length_looks_like_gzip_is_read_as_plain() -> None:
    payload = bytes(0x8B1F)  # its length's first bytes are gzip's magic number
    assert frame(payload)[:2] == b"\x1f\x8b"
    assert collect(frame(payload)) == ([payload], None)


@pytest.mark.parametrize("zipped", [False, True])
def test_records_larger_than_the_read_chunk_are_read_whole(zipped: bool) -> None:
    payloads = [os.urandom(1000), b"small", os.urandom(63), os.urandom(64), os.urandom(65)]
    data = join_frames(payloads)
    assert collect(gzip.compress(data) if zipped else data, 64) == (payloads, None)


def test_a_record_larger_than_the_real_read_chunk_is_read_whole() -> None:
    payloads = [b"x" * (tfrecords.CHUNK_BYTES + 5), b"next"]
    assert collect(join_frames(payloads)) == (payloads, None)


# Damage


@pytest.mark.parametrize("record", [0, 2, 3])
@pytest.mark.parametrize("place", ["payload", "payload checksum"])
def test_a_damaged_payload_loses_one_record_alone(record: int, place: str) -> None:
    data = bytearray(join_frames(PAYLOADS))
    data[BORDERS[record] + 12 if place == "payload" else BORDERS[record + 1] - 1] ^= 0x10
    expected = [None if i == record else payload for i, payload in enumerate(PAYLOADS)]
    assert collect(bytes(data)) == (expected, None)


@pytest.mark.parametrize("record", [0, 2, 3])
@pytest.mark.parametrize("byte", [0, 7, 8, 11])
def test_a_damaged_length_ends_the_file_and_says_where(
    tmp_path: pathlib.Path, record: int, byte: int
) -> None:
    path = write_records(tmp_path / "a", PAYLOADS)
    damage(path, BORDERS[record] + byte)
    frames, tail = collect(path.read_bytes())
    assert frames == PAYLOADS[:record]
    assert tail is not None and (tail.index, tail.offset) == (record, BORDERS[record])
    assert ("length is damaged" if record else "is not a record's length") in str(tail)
    # Where not even the first header is one, it is hardly a TFRecord file.
    assert tail.is_no_record is (record == 0)


@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_a_file_cut_anywhere_gives_its_whole_records_and_then_says_where_it_ends(
    chunk: int,
) -> None:
    data = join_frames(PAYLOADS)
    for cut in range(len(data) + 1):
        frames, tail = collect(data[:cut], chunk)
        complete = max(i for i, border in enumerate(BORDERS) if border <= cut)
        assert frames == PAYLOADS[:complete], cut
        if cut == BORDERS[complete]:
            assert tail is None, cut
        else:
            assert tail is not None and (tail.index, tail.offset) == (
                complete,
                BORDERS[complete],
            ), cut


def test_a_gzip_file_cut_anywhere_never_ends_well_and_never_gives_a_wrong_record() -> None:
    payloads = [os.urandom(50) for _ in range(20)]
    data = gzip.compress(join_frames(payloads))
    for cut in range(1, len(data)):
        frames, tail = collect(data[:cut])
        assert tail is not None, cut
        assert frames == payloads[: len(frames)], cut
        assert tail.index == len(frames) and tail.offset == 66 * len(frames), cut


def test_a_gzip_file_cut_near_its_end_gives_what_stands_before() -> None:
    # Bytes that do not compress: what is before the cut is known.
    payloads = [os.urandom(1000) for _ in range(100)]
    data = gzip.compress(join_frames(payloads))
    frames, tail = collect(data[: len(data) * 9 // 10])
    assert tail is not None
    assert len(frames) >= 85


def test_a_gzip_file_that_is_damaged_in_the_middle_gives_what_stands_before() -> None:
    # Two members, the second one not gzip any more.
    data = gzip.compress(join_frames(PAYLOADS)) + b"\x1f\x8b" + b"\xff" * 50
    frames, tail = collect(data)
    assert frames == PAYLOADS
    assert tail is not None and (tail.index, tail.offset) == (len(PAYLOADS), BORDERS[-1])


def test_a_flipped_bit_in_a_gzip_file_is_noticed() -> None:
    payloads = [bytes(np.random.default_rng(i).integers(0, 256, 100, np.uint8)) for i in range(10)]
    whole_data = join_frames(payloads)
    data = gzip.compress(whole_data)
    for position in range(10, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 4
        frames, tail = collect(bytes(damaged))
        # A few bits at the end of the compressed data pad its last byte and mean nothing.
        assert (
            tail is not None or frames != payloads or gzip.decompress(bytes(damaged)) == whole_data
        ), position
        for i, found in enumerate(frames):
            assert found in (None, payloads[i]), position


def test_an_error_of_the_storage_is_not_taken_for_the_end_of_the_file() -> None:
    class Flaky(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                raise ConnectionResetError("the network went away")
            return super().read(size)

    with pytest.raises(ConnectionResetError):
        list(read_frames(Flaky(join_frames(PAYLOADS))))


def test_an_empty_file_holds_no_records() -> None:
    assert collect(b"") == ([], None)
    assert collect(gzip.compress(b"")) == ([], None)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"not a TFRecord file, and longer than a header",
        b"\x1f\x8b",
        b"\x1f\x8bnonsense, not gzip either",
    ],
)
def test_a_file_of_another_kind_is_told_at_its_first_byte(data: bytes) -> None:
    frames, tail = collect(data)
    assert frames == []
    assert tail is not None and (tail.index, tail.offset) == (0, 0)


def test_a_length_that_cannot_be_true_is_refused_without_reading_on() -> None:
    length = struct.pack("<Q", 1 << 40)
    header = length + struct.pack("<I", tfrecords.masked_crc(length))
    frames, tail = collect(join_frames(PAYLOADS) + header + bytes(100))
    assert frames == PAYLOADS
    assert tail is not None and tail.index == len(PAYLOADS)


# Splitting what has been verified


@pytest.mark.parametrize("start", range(6))
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 9, None])
def test_split_frames_gives_the_range_like_a_slice(start: int, stop: int | None) -> None:
    assert split_frames(join_frames(PAYLOADS), start, stop) == PAYLOADS[start:stop]


# Picking a few


@pytest.mark.parametrize(
    "indices", [[], [0], [1, 2], [0, len(PAYLOADS) - 1], list(range(len(PAYLOADS)))]
)
def test_picked_frames_are_those_asked_for(indices: list[int]) -> None:
    assert pick_frames(io.BytesIO(join_frames(PAYLOADS)), indices) == [PAYLOADS[i] for i in indices]


def test_picking_notices_damage_to_what_it_reads_and_to_what_it_passes_over() -> None:
    data = join_frames(PAYLOADS)
    last = len(PAYLOADS) - 1
    for broken, message in (
        (data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], f"record {last} has another checksum"),
        (bytes([data[0] ^ 1]) + data[1:], "no record starts at byte 0"),
        (data[:-1], f"record {last} has another checksum"),
    ):
        with pytest.raises(ValueError, match=message):
            pick_frames(io.BytesIO(broken), [last])
    with pytest.raises(ValueError, match=f"no record starts at byte {len(data)}"):
        pick_frames(io.BytesIO(data), [len(PAYLOADS)])
