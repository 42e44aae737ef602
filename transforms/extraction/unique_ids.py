"""Repeated ids of a set: 64-bit hashes in buckets, and the records themselves where two are
equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.extraction.feature_batch import IDS, WrittenPart
from transforms.storage import feature_record, filesystems, tfrecords
from transforms.storage.filesystems import StoredFile

_ID_BUCKETS = 64

_TOLD_REPEATS = 5


def id_buckets(file: StoredFile, hashes: np.ndarray) -> Iterator[beam.pvalue.TaggedOutput]:
    """What `repeated_hashes` is told of a feature file."""
    buckets = hashes % _ID_BUCKETS
    for bucket in range(_ID_BUCKETS):
        (rows,) = np.nonzero(buckets == bucket)
        if len(rows):
            # As bytes, which Beam encodes by itself; arrays it would have pickled.
            yield beam.pvalue.TaggedOutput(
                IDS, (bucket, (file.name, rows.astype(np.int32).tobytes(), hashes[rows].tobytes()))
            )


def repeated_hashes(bucket: Iterable[tuple[str, bytes, bytes]]) -> list[list[tuple[str, int]]]:
    """Finds records whose ids have the same hash.

    `bucket` holds, per feature file, its name, row numbers [n] int32 and hashes [n] uint64. Returns
    up to five groups of (file name, row). Different ids with one 64-bit hash are rare; whoever uses
    this looks at the ids.
    """
    parts = [
        (name, np.frombuffer(rows, np.int32), np.frombuffer(hashes, np.uint64))
        for name, rows, hashes in bucket
    ]
    hashes = np.concatenate([h for _, _, h in parts])
    places = np.concatenate([np.full(len(h), i) for i, (_, _, h) in enumerate(parts)])
    rows = np.concatenate([r for _, r, _ in parts])
    order = np.lexsort((rows, places, hashes))
    _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    groups = []
    for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True):
        members = order[start : start + count]
        groups.append([(parts[places[m]][0], int(rows[m])) for m in members])
        if len(groups) == _TOLD_REPEATS:
            break
    return groups


def check_repeats(
    directory: str, parts: Sequence[WrittenPart], groups: Iterable[Sequence[tuple[str, int]]]
) -> None:
    """Looks at the ids of records whose hashes repeat.

    Raises:
        InputError: two examples have the same id.
    """
    by_name = {part.features.name: part.features for part in parts if part.features}
    for group in groups:
        seen: dict[str, str] = {}
        for name, row in group[:100]:
            if name not in by_name:
                continue
            (payload,) = tfrecords.split_frames(
                filesystems.read_verified(directory, by_name[name]), row, row + 1
            )
            (encoded,), (origin,) = (
                feature_record.example_ids([payload]),
                feature_record.origins([payload]),
            )
            example_id, place = encoded.decode(), f"{origin.source} record {origin.offset}"
            if example_id in seen:
                raise InputError(
                    f"the id {example_id!r} is used twice, by {seen[example_id]} and {place}: ids "
                    "must be unique in a data set; mend the data, or name another key with `id_key`"
                )
            seen[example_id] = place
