"""Frames of TFRecord files: payloads are read from a stream, with their damage, and written.

Beam's and TensorFlow's readers stop at the first damaged record and lose the rest of the file with
it. Here a payload with a wrong checksum is one record lost and reported, and the next is read. Only
a damaged length ends the file, since nobody knows where the next record starts. Format: `uint64
length, masked CRC-32C of it, payload, masked CRC-32C of it`, little-endian.
"""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import google_crc32c

# Bytes that are read at once: they stay in a processor's cache until their records are read.
CHUNK_BYTES = 1 << 20
_UNZIPPED = 1 << 18
_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_MASK = 0xA282EAD8
_GZIP_MAGIC = b"\x1f\x8b"
# A length beyond this is damage that happens to have a valid checksum, or not a TFRecord file.
_LONGEST = 1 << 31


class UnreadableTail(Exception):
    """The rest of a stream cannot be read.

    Attributes:
        index: the record that should start there.
        offset: where, in bytes, after decompression.
        reason: what is wrong.
        is_no_record: whether not even the first record's header is one, so that this is hardly a
            TFRecord file.
    """

    def __init__(self, index: int, offset: int, reason: str, is_no_record: bool = False) -> None:
        super().__init__(f"record {index} at byte {offset}: {reason}")
        self.index = index
        self.offset = offset
        self.reason = reason
        self.is_no_record = is_no_record


def masked_crc(data: bytes) -> int:
    """Returns TFRecord's checksum of some bytes: their CRC-32C, rotated and moved."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


@functools.lru_cache(maxsize=4096)
def _header(length: int) -> bytes:
    """Returns the bytes before a payload; records of a file have few lengths."""
    packed = struct.pack("<Q", length)
    return packed + _CRC.pack(masked_crc(packed))


def frame(payload: bytes) -> bytes:
    """Returns the bytes of one record in a TFRecord file."""
    return b"".join((_header(len(payload)), payload, _CRC.pack(masked_crc(payload))))


def join_frames(payloads: Iterable[bytes]) -> bytes:
    """The content of a TFRecord file that holds `payloads`."""
    parts: list[bytes] = []
    for payload in payloads:
        parts += (_header(len(payload)), payload, _CRC.pack(masked_crc(payload)))
    return b"".join(parts)


def split_frames(data: bytes, start: int = 0, stop: int | None = None) -> list[bytes]:
    """The payloads `start` to `stop` of a file whose whole content has been verified, so that
    checksums need no second look.
    """
    payloads = []
    position = index = 0
    while position < len(data) and (stop is None or index < stop):
        (length,) = struct.unpack_from("<Q", data, position)
        if index >= start:
            payloads.append(data[position + 12 : position + 12 + length])
        position += length + 16
        index += 1
    return payloads


def pick_frames(stream: IO[bytes], indices: Sequence[int]) -> list[bytes]:
    """The payloads of some records of an uncompressed stream that can seek, given by their indices,
    ascending; others are passed over.

    Raises:
        ValueError: a checksum of what is read is wrong, or the stream ends before.
    """
    payloads = []
    position = index = 0
    for chosen in indices:
        while True:
            stream.seek(position)
            header = stream.read(_HEADER.size)
            if not _is_header(header):
                raise ValueError(f"no record starts at byte {position}")
            (length, _) = _HEADER.unpack(header)
            position += length + 16
            index += 1
            if index > chosen:
                break
        payload, crc = stream.read(length), stream.read(_CRC.size)
        if len(payload) < length or crc != _CRC.pack(masked_crc(payload)):
            raise ValueError(f"record {chosen} has another checksum than is stored with it")
        payloads.append(payload)
    return payloads


def read_frames(stream: IO[bytes], chunk_bytes: int = CHUNK_BYTES) -> Iterator[list[bytes | None]]:
    """Reads the records of a TFRecord stream, plain or gzip (by content, not by name), in
    order, as many at once as a read of `chunk_bytes` gives.

    Yields:
        The payload of each, or None where its checksum is wrong.

    Raises:
        UnreadableTail: a length is damaged, the stream ends inside a record, or its compression is
            broken.
    """
    head = stream.read(_HEADER.size)
    if head[:2] == _GZIP_MAGIC and not _is_header(head):
        # It reads `fileobj` forwards only, which its type does not say.
        unzipped = gzip.GzipFile(fileobj=_Rewound(head, stream))  # type: ignore[call-overload]
        # read1, because read drops unzipped bytes when it comes to damage.
        yield from _read_plain(lambda size: unzipped.read1(min(size, _UNZIPPED)), b"", chunk_bytes)
    else:
        yield from _read_plain(stream.read, head, chunk_bytes)


def _is_header(data: bytes) -> bool:
    return len(data) == _HEADER.size and _HEADER.unpack(data)[1] == masked_crc(data[:8])


def _read_plain(
    read: Callable[[int], bytes], buffer: bytes, chunk_bytes: int
) -> Iterator[list[bytes | None]]:
    index = offset = 0
    broken: str | None = None
    while True:
        payloads, end, is_damaged = _whole_frames(buffer)
        if payloads:
            yield payloads
        index, offset, buffer = index + len(payloads), offset + end, buffer[end:]
        if is_damaged:
            reason = (
                "the record's length is damaged"
                if index
                else "what stands there is not a record's length"
            )
            raise UnreadableTail(index, offset, reason, is_no_record=not index)
        length = _LENGTH.unpack_from(buffer)[0] if len(buffer) >= _HEADER.size else None
        needed = _HEADER.size if length is None else length + 16
        parts, have = [buffer], len(buffer)
        while have < needed:
            try:
                part = read(max(chunk_bytes, needed - have))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                broken, part = str(error), b""
            if not part:
                if broken or length is not None:
                    raise UnreadableTail(
                        index, offset, broken or f"the file ends inside a record of {length} bytes"
                    )
                if have:
                    raise UnreadableTail(
                        index, offset, f"the file ends inside a record's header, after {have} bytes"
                    )
                return
            parts.append(part)
            have += len(part)
        buffer = b"".join(parts)


def _whole_frames(buffer: bytes) -> tuple[list[bytes | None], int, bool]:
    """The payloads of the records that a buffer begins with; where the next one starts, and whether
    its header is damaged.
    """
    payloads: list[bytes | None] = []
    position, size = 0, len(buffer)
    # Bound to local names, since this is done for every record.
    unpack_length, unpack_crc, crc_of = _LENGTH.unpack_from, _CRC.unpack_from, google_crc32c.value
    while size - position >= _HEADER.size:
        (length,) = unpack_length(buffer, position)
        start = position + _HEADER.size
        if length > _LONGEST or buffer[position:start] != _header(length):
            return payloads, position, True
        end = start + length
        if size - end < _CRC.size:
            break
        payload = buffer[start:end]
        crc = crc_of(payload)
        payloads.append(
            payload
            if unpack_crc(buffer, end)[0] == ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF
            else None
        )
        position = end + _CRC.size
    return payloads, position, False


class _Rewound:
    """A stream whose first bytes have been read and are given again."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._stream.read(size)
        head, self._head = self._head, b""
        if size < 0:
            return head + self._stream.read()
        self._head = head[size:]
        return head[:size]
