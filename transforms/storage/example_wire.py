"""`tf.train.Example` in its wire format, written column by column for a whole batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transforms.core.features import NO_LABEL


def encode_vectors(example_ids: np.ndarray, labels: np.ndarray, vectors: np.ndarray) -> list[bytes]:
    """Serializes n `tf.train.Example`s of `example_id`, `label` and `vector`: [n], [n, L] and [n,
    d] float32, lists of floats.
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
    """Serialized `tf.train.Example`s [n] of columns: the kind of a column's lists, and the content
    of each, as rows [n, size] of bytes, a row [1, size] for all, or by itself.

    Neighbouring columns whose contents have one size are laid side by side in an array, so that
    little is left to do for each record, and nothing where this is so of all columns.
    """
    pieces: list[list[bytes]] = []
    fixed: list[np.ndarray] = []

    def lay() -> None:
        if fixed:
            pieces.append(_beside(n, fixed))
            fixed.clear()

    for name, key in sorted((name.encode(), name) for name in payloads):
        kind, content = payloads[key]
        rows = content if isinstance(content, np.ndarray) else _as_rows(content)
        if rows is not None:
            fixed += [constant_row(entry_head(name, kind, rows.shape[1])), rows]
        else:
            lay()
            pieces.append([entry_head(name, kind, len(value)) + value for value in content])
    if not pieces:
        return _beside(
            n, [constant_row(_example_head(sum(column.shape[1] for column in fixed))), *fixed]
        )
    lay()
    return [serialize_example(*row) for row in zip(*pieces, strict=True)]


def _beside(n: int, columns: Sequence[np.ndarray]) -> list[bytes]:
    """The rows of columns [n, size] or [1, size] side by side."""
    return _one_by_one(
        np.concatenate(
            [np.broadcast_to(column, (n, column.shape[1])) for column in columns], axis=1
        )
    )


def constant_row(data: bytes) -> np.ndarray:
    """Returns bytes as one row [1, size], the same for all records."""
    return np.frombuffer(data, np.uint8)[None]


def text_rows(texts: np.ndarray) -> np.ndarray | list[bytes]:
    """Byte strings [n] (dtype S) as rows [n, size] where all are of one length."""
    rows = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1 if len(texts) else 0)
    # A shorter one is filled up with NULs, which none ends with.
    return rows if rows.shape[1] and rows[:, -1].all() else texts.tolist()


def _one_by_one(rows: np.ndarray) -> list[bytes]:
    """Rows [n, size] of bytes, size at least 1, as byte strings."""
    data, size = rows.tobytes(), rows.shape[1]
    return [data[start : start + size] for start in range(0, len(data), size)]


def _as_rows(contents: Sequence[bytes]) -> np.ndarray | None:
    """Byte strings of one length as an array [n, length]; None where they have several."""
    lengths = set(map(len, contents))
    if len(lengths) > 1:
        return None
    return np.frombuffer(b"".join(contents), np.uint8).reshape(
        len(contents), max(lengths, default=0)
    )


def serialize_example(*entries: bytes) -> bytes:
    """A `tf.train.Example` of these entries of its map."""
    return b"".join((_example_head(sum(map(len, entries))), *entries))


def _example_head(size: int) -> bytes:
    """What stands before the entries, of `size` bytes together."""
    return b"\x0a" + _varint(size)


# Numbers of the lists in `tf.train.Feature`; and a Feature that is whole already.
BYTES_LIST, FLOAT_LIST, INT64_LIST, WHOLE_FEATURE = 1, 2, 3, 0


@functools.lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    """An integer as Protocol Buffers write it, seven bits a byte; one below zero as its 64-bit
    two's complement.
    """
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def varint_rows(values: np.ndarray) -> np.ndarray | list[bytes]:
    """Integers [n] as Protocol Buffers write them, as rows [n, size] where all take as many
    bytes.
    """
    places = np.arange(10)
    septets = values.astype(np.uint64)[:, None] >> (7 * places).astype(np.uint64)
    sizes = np.maximum(1, np.count_nonzero(septets, axis=1))
    written = (septets & np.uint64(0x7F)).astype(np.uint8) | np.where(
        places < sizes[:, None] - 1, 0x80, 0
    ).astype(np.uint8)
    if len(values) and sizes.min() == sizes.max():
        return written[:, : sizes[0]]
    return [row[:size] for row, size in zip(_one_by_one(written), sizes.tolist(), strict=True)]


@functools.lru_cache(maxsize=4096)
def entry_head(key: bytes, kind: int, size: int) -> bytes:
    """What stands before the last `size` bytes, the payload, of an entry of the map
    `tf.train.Features.feature`.

    The payload is the last field of the innermost of nested messages, so that it ends where all of
    them do.
    """
    # A packed list without numbers is not written at all; a byte string without bytes is.
    numbers = (1,) if kind == BYTES_LIST or size else ()
    inside = () if kind == WHOLE_FEATURE else (kind, *numbers)
    head = b""
    for number in (*reversed(inside), 2):
        head = bytes((number << 3 | 2,)) + _varint(len(head) + size) + head
    head = b"\x0a" + _varint(len(key)) + key + head
    return b"\x0a" + _varint(len(head) + size) + head


def float_list(array: np.ndarray) -> bytes:
    """A serialized `tf.train.FloatList` of an array's numbers."""
    data = array.ravel().astype("<f4").tobytes()
    return b"\x0a" + _varint(len(data)) + data if data else b""


def byte_rows(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The bytes of each of n rows: [n, size]."""
    flat = np.ascontiguousarray(array, dtype).reshape(len(array), math.prod(array.shape[1:]))
    return flat.view(np.uint8) if flat.size else np.empty((len(array), 0), np.uint8)


def number_lists(values: np.ndarray) -> tuple[int, np.ndarray | list[bytes]]:
    """The lists of n rows: of whole numbers but `NO_LABEL`, or of float32."""
    if np.issubdtype(values.dtype, np.integer):
        if values.shape[1] == 1 and (values != NO_LABEL).all():
            return INT64_LIST, varint_rows(values[:, 0])
        return INT64_LIST, [
            b"".join([_varint(v) for v in row if v != NO_LABEL]) for row in values.tolist()
        ]
    with np.errstate(over="ignore"):
        return FLOAT_LIST, byte_rows(values, "<f4")
