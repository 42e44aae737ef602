"""Ids of examples and of their positions: byte strings in arrays, compared by 64-bit hashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

_SEPARATOR = b"@"


def record_id(example_id: bytes, position: int) -> bytes:
    """The id of the record of a position (counted from 0, row by row where there are several axes):
    `id@position`.
    """
    return b"%s%s%d" % (example_id, _SEPARATOR, position)


def example_of(record: bytes) -> bytes:
    """The id of the example that a record is a position of."""
    return record.rpartition(_SEPARATOR)[0]


def id_array(ids: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Byte strings as an array [n] of dtype S, which sorts like the strings."""
    return np.array(ids, dtype=np.bytes_) if len(ids) else np.empty(0, "S1")


def id_hashes(example_ids: Iterable[bytes]) -> np.ndarray:
    """64 bits of each id [n]; equal for two different ids once in a very long while."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, example_ids), np.uint64)
