"""Serialized records of TFRecord, Parquet and NumPy files, in order or at some offsets."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from itertools import islice
from typing import IO

from transforms.examples.format import InputFile
from transforms.examples.tables import ARCHIVE_MAGIC, PARQUET_MAGIC, read_archive, read_parquet
from transforms.storage import filesystems
from transforms.storage.records.tfrecords import UnreadableTail, read_frames


def read_records(stream: IO[bytes]) -> Iterator[list[bytes | None]]:
    """Yields lists of the records of a file, whose kind its first bytes tell.

    A record with a wrong checksum is None.

    Raises:
        UnreadableTail: the rest of the file cannot be read.
    """
    head = stream.read(4)
    stream.seek(0)
    return {PARQUET_MAGIC: read_parquet, ARCHIVE_MAGIC: read_archive}.get(head, read_frames)(stream)


def records_at(path: str, offsets: Collection[int]) -> dict[int, bytes]:
    """Returns the readable ones of the records at some offsets of a file, by offset."""
    stop = max(offsets, default=-1) + 1
    return {offset: payload for offset, payload in _readable(path, stop) if offset in offsets}


def first_records(file: InputFile, n: int) -> list[bytes]:
    """Returns the first n readable records of a file, or all if there are fewer."""
    return [payload for _, payload in islice(_readable(file.path), n)]


def _readable(path: str, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields the readable records before `stop`, or all, with their offsets."""
    offset = 0
    with filesystems.open_raw(path) as stream, contextlib.suppress(UnreadableTail):
        for payloads in read_records(stream):
            for payload in payloads:
                if offset == stop:
                    return
                if payload is not None:
                    yield offset, payload
                offset += 1
