"""Ids of examples and of their positions: byte strings in arrays, and their 64-bit hashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

_SEPARATOR = b"@"


def record_id(example_id: bytes, position: int) -> bytes:
    """Returns the id of a position's record, `id@position`.

    Positions count from 0, row by row where there are several axes.
    """
    return b"%s%s%d" % (example_id, _SEPARATOR, position)


def example_of(record: bytes) -> bytes:
    """Returns the id of the example that a record is a position of."""
    return record.rpartition(_SEPARATOR)[0]


def id_array(ids: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Returns byte strings as an array [n] of dtype S, which sorts like the strings."""
    return np.array(ids, dtype=np.bytes_) if len(ids) else np.empty(0, "S1")


def id_hashes(example_ids: Iterable[bytes]) -> np.ndarray:
    """Returns 64-bit hashes of ids: [n] uint64; two different ids hardly ever share one."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, example_ids), np.uint64)
