"""`tf.train.Example` in the wire format of Protocol Buffers: batches written column by column,
single records read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from transforms.core.features import NO_LABEL


def encode_vectors(example_ids: np.ndarray, labels: np.ndarray, vectors: np.ndarray) -> list[bytes]:
    """Serializes n `tf.train.Example`s of `example_id` [n], `label` [n, L] and `vector` [n, d]
    float32, a list of floats.
    """
    return serialize_examples(
        len(vectors),
        {
            "example_id": (BYTES_LIST, text_rows(example_ids)),
            "label": number_lists(labels),
            "vector": (FLOAT_LIST, byte_rows(vectors, "<f4")),
        },
    )


def serialize_examples(
    n: int, payloads: Mapping[str, tuple[int, np.ndarray | Sequence[bytes]]]
) -> list[bytes]:
    """Serializes n `tf.train.Example`s from columns.

    A column is the kind of its lists, and their contents: rows [n, size] of bytes, a row [1, size]
    for all records, or n byte strings. Neighbouring columns whose contents have one size are put
    side by side as arrays, so that little is left to do for each record; nothing, where all columns
    are such.
    """
    pieces: list[list[bytes]] = []
    fixed: list[np.ndarray] = []

    def join_fixed() -> None:
        if fixed:
            pieces.append(_side_by_side(n, fixed))
            fixed.clear()

    for name, key in sorted((name.encode(), name) for name in payloads):
        kind, content = payloads[key]
        rows = content if isinstance(content, np.ndarray) else _as_rows(content)
        if rows is not None:
            fixed += [constant_row(entry_head(name, kind, rows.shape[1])), rows]
        else:
            join_fixed()
            pieces.append([entry_head(name, kind, len(value)) + value for value in content])
    if not pieces:
        return _side_by_side(
            n, [constant_row(_example_head(sum(column.shape[1] for column in fixed))), *fixed]
        )
    join_fixed()
    return [serialize_example(*row) for row in zip(*pieces, strict=True)]


def _side_by_side(n: int, columns: Sequence[np.ndarray]) -> list[bytes]:
    """Returns the rows of columns [n, size] or [1, size] side by side, as byte strings."""
    return _split_rows(
        np.concatenate(
            [np.broadcast_to(column, (n, column.shape[1])) for column in columns], axis=1
        )
    )


def constant_row(data: bytes) -> np.ndarray:
    """Returns bytes as one row [1, size], the same for all records."""
    return np.frombuffer(data, np.uint8)[None]


def text_rows(texts: np.ndarray) -> np.ndarray | list[bytes]:
    """Returns byte strings [n] (dtype S) as rows [n, size], or as a list where their lengths
    differ.
    """
    rows = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1 if len(texts) else 0)
    # A shorter string is filled up with NULs, with which no id ends.
    return rows if rows.shape[1] and rows[:, -1].all() else texts.tolist()


def _split_rows(rows: np.ndarray) -> list[bytes]:
    """Returns rows [n, size] of bytes, size at least 1, as byte strings."""
    data, size = rows.tobytes(), rows.shape[1]
    return [data[start : start + size] for start in range(0, len(data), size)]


def _as_rows(contents: Sequence[bytes]) -> np.ndarray | None:
    """Returns byte strings of one length as an array [n, length]; None where lengths differ."""
    lengths = set(map(len, contents))
    if len(lengths) > 1:
        return None
    return np.frombuffer(b"".join(contents), np.uint8).reshape(
        len(contents), max(lengths, default=0)
    )


def serialize_example(*entries: bytes) -> bytes:
    """Returns a serialized `tf.train.Example` of serialized entries of its map."""
    return b"".join((_example_head(sum(map(len, entries))), *entries))


def _example_head(size: int) -> bytes:
    """Returns the bytes before the entries, which have `size` bytes together."""
    return b"\x0a" + varint(size)


# Bytes of a varint of 64 bits, at most.
LONGEST_VARINT = 10

# Field numbers of the lists in `tf.train.Feature`; and a feature that is serialized already.
BYTES_LIST, FLOAT_LIST, INT64_LIST, WHOLE_FEATURE = 1, 2, 3, 0


@functools.lru_cache(maxsize=4096)
def varint(value: int) -> bytes:
    """Returns an integer as Protocol Buffers write it, seven bits a byte; one below zero as its
    64-bit two's complement.
    """
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def varint_rows(values: np.ndarray) -> np.ndarray | list[bytes]:
    """Returns integers [n] as varints: rows [n, size] where all have as many bytes, else byte
    strings.
    """
    indices = np.arange(LONGEST_VARINT)
    septets = values.astype(np.uint64)[:, None] >> (7 * indices).astype(np.uint64)
    sizes = np.maximum(1, np.count_nonzero(septets, axis=1))
    written = (septets & np.uint64(0x7F)).astype(np.uint8) | np.where(
        indices < sizes[:, None] - 1, 0x80, 0
    ).astype(np.uint8)
    if len(values) and sizes.min() == sizes.max():
        return written[:, : sizes[0]]
    return [row[:size] for row, size in zip(_split_rows(written), sizes.tolist(), strict=True)]


@functools.lru_cache(maxsize=4096)
def entry_head(key: bytes, kind: int, size: int) -> bytes:
    """Returns the bytes before the payload, the last `size` bytes, of an entry of the map
    `tf.train.Features.feature`.

    The payload is the last field of the innermost of nested messages, so that it ends where all of
    them do.
    """
    # A packed list without numbers is not written at all; a byte string without bytes is.
    numbers = (1,) if kind == BYTES_LIST or size else ()
    inside = () if kind == WHOLE_FEATURE else (kind, *numbers)
    head = b""
    for number in (*reversed(inside), 2):
        head = bytes((number << 3 | 2,)) + varint(len(head) + size) + head
    head = b"\x0a" + varint(len(key)) + key + head
    return b"\x0a" + varint(len(head) + size) + head


def float_list(array: np.ndarray) -> bytes:
    """Returns a serialized `tf.train.FloatList` of an array's numbers."""
    data = array.ravel().astype("<f4").tobytes()
    return b"\x0a" + varint(len(data)) + data if data else b""


def byte_rows(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns the bytes of each of n rows: [n, size] uint8."""
    flat = np.ascontiguousarray(array, dtype).reshape(len(array), math.prod(array.shape[1:]))
    return flat.view(np.uint8) if flat.size else np.empty((len(array), 0), np.uint8)


def number_lists(values: np.ndarray) -> tuple[int, np.ndarray | list[bytes]]:
    """Returns the kind and the contents of n lists of numbers: integers without `NO_LABEL`, or
    float32.
    """
    if np.issubdtype(values.dtype, np.integer):
        if values.shape[1] == 1 and (values != NO_LABEL).all():
            return INT64_LIST, varint_rows(values[:, 0])
        return INT64_LIST, [
            b"".join([varint(v) for v in row if v != NO_LABEL]) for row in values.tolist()
        ]
    with np.errstate(over="ignore"):
        return FLOAT_LIST, byte_rows(values, "<f4")


# Wire types of fields: a varint, eight bytes, a length and so many bytes, four bytes.
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


class WireError(ValueError):
    """Bytes are no message of the expected kind."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """A `tf.train.Feature`: its values, by their kind byte strings, floats or integers.

    Attributes:
        kind: `BYTES_LIST`, `FLOAT_LIST` or `INT64_LIST`; or None where the feature has no list.
        values: of the list.
    """

    kind: int | None = None
    values: tuple[bytes, ...] | tuple[float, ...] | tuple[int, ...] = ()

    @staticmethod
    def parse(serialized: bytes) -> Feature:
        """Parses a serialized `tf.train.Feature`.

        Raises:
            WireError: it is none.
        """
        kind: int | None = None
        values: list = []
        for number, wire_type, content in _fields(serialized):
            if number not in _READERS or wire_type != _LENGTH_DELIMITED:
                continue
            if number != kind:  # the last kind counts; lists of one kind are joined
                kind, values = number, []
            assert isinstance(content, bytes)
            values += _READERS[number](content)
        return Feature(kind, tuple(values))

    def serialize(self) -> bytes:
        """Returns the serialized `tf.train.Feature`, numbers packed."""
        if self.kind is None:
            return b""
        content = numbers_of(self)
        if self.kind == BYTES_LIST:
            content = b"".join(_delimited(1, value) for value in self.values)  # type: ignore[arg-type]
        elif content:
            content = _delimited(1, content)
        return _delimited(self.kind, content)


def numbers_of(feature: Feature) -> bytes:
    """Returns the packed numbers of a list of floats or integers."""
    if feature.kind == FLOAT_LIST:
        return struct.pack(f"<{len(feature.values)}f", *feature.values)
    if feature.kind == INT64_LIST:
        return b"".join(map(varint, feature.values))
    return b""


def read_features(serialized: bytes) -> dict[bytes, Feature]:
    """Parses a serialized `tf.train.Example`: its features by their keys, UTF-8; of a key that
    comes several times, the last.

    Raises:
        WireError: it is none.
    """
    return {key: Feature.parse(value) for key, value in _entries(serialized)}


def entry_keys(serialized: bytes) -> list[bytes]:
    """Returns the keys of a serialized `tf.train.Example` in their order.

    Raises:
        WireError: it is none.
    """
    return [key for key, _ in _entries(serialized)]


def _entries(serialized: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys of a `tf.train.Example`, and the serialized features."""
    for _, features in _messages(serialized, {1}):
        for _, entry in _messages(features, {1}):
            parts = dict(_messages(entry, {1, 2}))
            yield parts.get(1, b""), parts.get(2, b"")


def _messages(data: bytes, numbers: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yields the fields of some numbers that hold bytes, and passes over all others."""
    for number, _, content in _fields(data):
        if number in numbers and isinstance(content, bytes):
            yield number, content


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """Yields the fields of a message: number, wire type and content, an integer of a varint and
    bytes of all others.

    Raises:
        WireError: a field ends beyond the message, or has no type that is in use.
    """
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        content: bytes | int
        if wire_type == _VARINT:
            content, position = _read_varint(data, position)
        else:
            if wire_type == _LENGTH_DELIMITED:
                size, position = _read_varint(data, position)
            elif wire_type in _FIXED_SIZES:
                size = _FIXED_SIZES[wire_type]
            else:
                raise WireError(f"there is no field of wire type {wire_type}, at byte {position}")
            content = data[position : position + size]
            if len(content) < size:
                raise WireError(
                    f"a field of {size} bytes starts {len(content)} bytes before its message ends"
                )
            position += size
        if number == 0:
            raise WireError(f"there is no field number 0, at byte {position}")
        yield number, wire_type, content


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns a varint, 64 bits of it, and the position behind it."""
    value = 0
    for i, byte in enumerate(data[position : position + LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & (1 << 64) - 1, position + i + 1
    raise WireError(
        f"a number does not end within {min(LONGEST_VARINT, len(data) - position)} bytes, at byte "
        f"{position}"
    )


def _delimited(number: int, content: bytes) -> bytes:
    """Returns a field that holds bytes."""
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + varint(len(content)) + content


def _read_bytes_list(data: bytes) -> list[bytes]:
    return [content for _, content in _messages(data, {1})]


def _read_float_list(data: bytes) -> list[float]:
    values: list[float] = []
    for number, wire_type, content in _fields(data):
        if number != 1 or wire_type not in (_LENGTH_DELIMITED, _FIXED32):
            continue
        assert isinstance(content, bytes)
        if len(content) % 4:
            raise WireError(f"{len(content)} bytes are no whole float32 numbers")
        values += struct.unpack(f"<{len(content) // 4}f", content)
    return values


def _read_int64_list(data: bytes) -> list[int]:
    values: list[int] = []
    for number, _, content in _fields(data):
        if number != 1:
            continue
        if isinstance(content, int):
            values.append(_signed(content))
            continue
        position = 0
        while position < len(content):
            value, position = _read_varint(content, position)
            values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_READERS: Mapping[int, Any] = {
    BYTES_LIST: _read_bytes_list,
    FLOAT_LIST: _read_float_list,
    INT64_LIST: _read_int64_list,
}
