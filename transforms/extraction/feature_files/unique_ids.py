"""Ids that a feature set uses twice: found by 64-bit hashes in buckets, confirmed by the ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.extraction.feature_files.written_part import IDS, WrittenPart
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile
from transforms.storage.records import feature_record, tfrecords

# Spreads the hashes over workers; a bucket of a hundred million records is 20 MB.
_ID_BUCKETS = 64
# Groups of equal hashes of a bucket that are looked at, and records of each: one pair of equal ids
# fails the run, and hashes of different ids are hardly ever equal.
_MAX_GROUPS, _MAX_RECORDS = 5, 100


def id_buckets(file: StoredFile, hashes: np.ndarray) -> Iterator[beam.pvalue.TaggedOutput]:
    """Yields the ids of a feature file by bucket, for `repeated_hashes`.

    Args:
        file: the feature file.
        hashes: [n] uint64, hash of each record's id.

    Yields:
        Under the tag `IDS`: (bucket, (file name, rows [m] int32, hashes [m] uint64)), the arrays
        as bytes.
    """
    buckets = hashes % _ID_BUCKETS
    for bucket in range(_ID_BUCKETS):
        (rows,) = np.nonzero(buckets == bucket)
        if len(rows):
            # As bytes, which Beam has a coder for; it would pickle arrays.
            yield beam.pvalue.TaggedOutput(
                IDS, (bucket, (file.name, rows.astype(np.int32).tobytes(), hashes[rows].tobytes()))
            )


def repeated_hashes(bucket: Iterable[tuple[str, bytes, bytes]]) -> list[list[tuple[str, int]]]:
    """Finds the records of a bucket whose ids have the same hash.

    Args:
        bucket: for each feature file its name, rows and hashes, as of `id_buckets`.

    Returns:
        Up to five groups of (file name, row). The hashes of two different ids may be equal, though
        hardly ever are; so `check_repeats` compares the ids.
    """
    files = [
        (name, np.frombuffer(rows, np.int32), np.frombuffer(hashes, np.uint64))
        for name, rows, hashes in bucket
    ]
    hashes = np.concatenate([h for _, _, h in files])
    owners = np.concatenate([np.full(len(h), i) for i, (_, _, h) in enumerate(files)])
    rows = np.concatenate([r for _, r, _ in files])
    order = np.lexsort((rows, owners, hashes))
    _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    repeated = counts > 1
    groups = []
    for start, count in zip(starts[repeated][:_MAX_GROUPS], counts[repeated], strict=False):
        members = order[start : start + count]
        groups.append([(files[owners[member]][0], int(rows[member])) for member in members])
    return groups


def check_repeats(
    directory: str, parts: Sequence[WrittenPart], groups: Iterable[Sequence[tuple[str, int]]]
) -> None:
    """Compares the ids of records whose hashes are equal.

    Args:
        directory: the feature set's directory.
        parts: all parts of the set.
        groups: (file name, row) of records with equal hashes, as of `repeated_hashes`.

    Raises:
        InputError: two records have the same id.
    """
    files = {part.features.name: part.features for part in parts if part.features}
    for group in groups:
        seen: dict[str, str] = {}
        for name, row in group[:_MAX_RECORDS]:
            if name not in files:
                continue
            example_id, origin = _id_and_origin(directory, files[name], row)
            if example_id in seen:
                raise InputError(
                    f"the id {example_id!r} is used twice, by {seen[example_id]} and {origin}: ids "
                    "must be unique in a data set; mend the data, or name another key with "
                    "`id_key`"
                )
            seen[example_id] = origin


def _id_and_origin(directory: str, file: StoredFile, row: int) -> tuple[str, str]:
    payload = tfrecords.split_frames(filesystems.read_verified(directory, file), row, row + 1)
    (example_id,), (origin,) = feature_record.example_ids(payload), feature_record.origins(payload)
    return example_id.decode(), f"{origin.source} record {origin.offset}"
