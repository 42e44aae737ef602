"""Records of a base and examples of a run, matched by id and content, bucket by bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import xxhash

from transforms.examples.format import InputFile
from transforms.storage.filesystems import StoredFile

KEY_BYTES = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """Records of a file of the base whose examples are in a file of this run, unchanged.

    Attributes:
        stored: the file of the base.
        rows: [n] rows of the records in `stored`. Positions of an example are several rows,
            ascending, with one offset.
        file: the file of examples.
        offsets: [n] offsets of the examples in `file`.
    """

    stored: StoredFile
    rows: np.ndarray
    file: InputFile
    offsets: np.ndarray


def example_key(example_id: bytes, content_digest: bytes) -> bytes:
    """Returns 16 bytes that are equal for the same id and content, and never else in practice."""
    return xxhash.xxh3_128_digest(example_id + b"\0" + content_digest)


def bucketed(keys: Sequence[bytes], buckets: int) -> Iterator[tuple[int, np.ndarray, bytes]]:
    """Yields keys by bucket: the bucket's number, the indices [n] of its keys, the keys joined."""
    array = np.frombuffer(b"".join(keys), "<u8").reshape(len(keys), 2)
    numbers = array[:, 0] % np.uint64(buckets)
    order = np.argsort(numbers, kind="stable")
    occupied, starts = np.unique(numbers[order], return_index=True)
    # Without keys, np.split gives one empty part and there is no bucket.
    for bucket, indices in zip(occupied, np.split(order, starts[1:]), strict=False):
        yield int(bucket), indices, array[indices].tobytes()


def match_examples(
    bucket: Iterable[tuple[StoredFile | InputFile, np.ndarray, bytes]],
) -> list[Match]:
    """Returns the matches in a bucket of (file, rows or offsets, joined keys).

    An example that occurs twice is matched once. That its id repeats is found at the commit.
    """
    elements = list(bucket)
    stored = _by_key(elements)
    examples = [
        (owner, offsets, joined)
        for owner, offsets, joined in elements
        if isinstance(owner, InputFile)
    ]
    matches = []
    for file, offsets, joined in sorted(examples, key=lambda example: example[0].index):
        pairs: dict[StoredFile, tuple[list[int], list[int]]] = {}
        for key, offset in zip(_split(joined), offsets.tolist(), strict=True):
            if key in stored:
                owner, record_rows = stored.pop(key)
                rows, matched = pairs.setdefault(owner, ([], []))
                rows += record_rows
                matched += [offset] * len(record_rows)
        matches += [
            Match(owner, np.array(rows), file, np.array(matched))
            for owner, (rows, matched) in pairs.items()
        ]
    return matches


def _by_key(
    elements: Iterable[tuple[StoredFile | InputFile, np.ndarray, bytes]],
) -> dict[bytes, tuple[StoredFile, list[int]]]:
    """Returns the base's records by key: their file and their rows, several for positions."""
    stored: dict[bytes, tuple[StoredFile, list[int]]] = {}
    for owner, rows, joined in elements:
        if isinstance(owner, StoredFile):
            for key, row in zip(_split(joined), rows.tolist(), strict=True):
                stored.setdefault(key, (owner, []))[1].append(row)
    return stored


def _split(joined: bytes) -> list[bytes]:
    return [joined[i : i + KEY_BYTES] for i in range(0, len(joined), KEY_BYTES)]
