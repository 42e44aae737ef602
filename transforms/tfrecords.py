"""The framing of TFRecord files: payloads out of a stream, one by one and with what is wrong with them; and back.

Beam's and TensorFlow's readers stop at the first damaged record and lose the rest of the file with it. Here a payload with a wrong
checksum is one record lost, said so, and the next is read; only a damaged length ends the file, since nobody knows where the next
record starts. Format: `uint64 length, masked CRC-32C of it, payload, masked CRC-32C of it`, little-endian.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import google_crc32c

# Stays in a processor's cache until its records have been looked at.
_CHUNK = 1 << 20
_UNZIPPED = 1 << 18
_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_GZIP_MAGIC = b"\x1f\x8b"
# A length beyond this is damage that happens to have a valid checksum, or not a TFRecord file.
_LONGEST = 1 << 31


class UnreadableTail(Exception):
    """The rest of a stream cannot be read.

    Attributes:
        index: the record that should start there.
        offset: where, in bytes, after decompression.
        reason: what is wrong.
        is_no_record: whether not even the first record's header is one, so that this is hardly a TFRecord file.
    """

    def __init__(self, index: int, offset: int, reason: str, is_no_record: bool = False) -> None:
        super().__init__(f"record {index} at byte {offset}: {reason}")
        self.index = index
        self.offset = offset
        self.reason = reason
        self.is_no_record = is_no_record


# Not frozen: there is one for each record, and to make a frozen one takes three times as long.
@dataclasses.dataclass(slots=True)
class Frame:
    """One record of a stream: its index, and its payload or None where the payload's checksum is wrong."""

    index: int
    payload: bytes | None


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.lru_cache(maxsize=4096)
def _header(length: int) -> bytes:
    """What stands before a payload; records of a file have few lengths."""
    packed = struct.pack("<Q", length)
    return packed + _CRC.pack(_masked_crc(packed))


def frame(payload: bytes) -> bytes:
    """The bytes of one record in a TFRecord file."""
    return b"".join((_header(len(payload)), payload, _CRC.pack(_masked_crc(payload))))


def join_frames(payloads: Iterable[bytes]) -> bytes:
    """The content of a TFRecord file that holds `payloads`."""
    parts: list[bytes] = []
    for payload in payloads:
        parts += (_header(len(payload)), payload, _CRC.pack(_masked_crc(payload)))
    return b"".join(parts)


def split_frames(data: bytes, start: int = 0, stop: int | None = None) -> list[bytes]:
    """The payloads `start` to `stop` of a file whose whole content has been verified, so that checksums need no second look."""
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
    """The payloads of some records of an uncompressed stream that can seek, given by their indices, ascending; others are passed over.

    Raises:
        ValueError: a checksum of what is read is wrong, or the stream ends before.
    """
    payloads = []
    position = index = 0
    for wanted in indices:
        while True:
            stream.seek(position)
            header = stream.read(_HEADER.size)
            if not _is_header(header):
                raise ValueError(f"no record starts at byte {position}")
            (length, _) = _HEADER.unpack(header)
            position += length + 16
            index += 1
            if index > wanted:
                break
        payload, crc = stream.read(length), stream.read(_CRC.size)
        if len(payload) < length or crc != _CRC.pack(_masked_crc(payload)):
            raise ValueError(f"record {wanted} has another checksum than is stored with it")
        payloads.append(payload)
    return payloads


def read_frames(stream: IO[bytes]) -> Iterator[Frame]:
    """Reads the records of a TFRecord stream, plain or gzip (told by content, not by name), in order.

    Raises:
        UnreadableTail: a length is damaged, the stream ends inside a record, or its compression is broken.
    """
    head = stream.read(_HEADER.size)
    if head[:2] == _GZIP_MAGIC and not _is_header(head):
        # It reads `fileobj` forwards only, which its type does not say.
        unzipped = gzip.GzipFile(fileobj=_Rewound(head, stream))  # type: ignore[call-overload]
        # read1, because read throws away what it has unzipped when it comes to a damaged place.
        yield from _read_plain(lambda size: unzipped.read1(min(size, _UNZIPPED)), b"")
    else:
        yield from _read_plain(stream.read, head)


def _is_header(data: bytes) -> bool:
    return len(data) == _HEADER.size and _HEADER.unpack(data)[1] == _masked_crc(data[:8])


def _read_plain(read: Callable[[int], bytes], buffer: bytes) -> Iterator[Frame]:
    index = offset = position = 0
    ended = False
    broken: str | None = None

    def fill(wanted: int) -> bool:
        """Makes `wanted` bytes available from `position`, if the stream has them."""
        nonlocal buffer, position, ended, broken
        parts = [buffer[position:]]
        have = len(parts[0])
        while have < wanted and not ended:
            try:
                part = read(max(_CHUNK, wanted - have))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                broken, part = str(error), b""
            ended = not part
            parts.append(part)
            have += len(part)
        buffer, position = b"".join(parts), 0
        return have >= wanted

    while True:
        # Most of what is asked for is there; calls would be most of what reading costs.
        if len(buffer) - position < _HEADER.size and not fill(_HEADER.size):
            if broken or len(buffer) > position:
                raise UnreadableTail(
                    index, offset, broken or f"the file ends inside a record's header, after {len(buffer) - position} bytes"
                )
            return
        (length,) = _LENGTH.unpack_from(buffer, position)
        if length > _LONGEST or buffer[position : position + _HEADER.size] != _header(length):
            reason = "the record's length is damaged" if index else "what stands there is not a record's length"
            raise UnreadableTail(index, offset, reason, is_no_record=not index)
        if len(buffer) - position < length + 16 and not fill(length + 16):
            raise UnreadableTail(index, offset, broken or f"the file ends inside a record of {length} bytes")
        end = position + 12 + length
        payload = buffer[position + 12 : end]
        yield Frame(index, payload if _CRC.unpack_from(buffer, end)[0] == _masked_crc(payload) else None)
        position = end + _CRC.size
        offset += length + 16
        index += 1


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
