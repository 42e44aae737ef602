"""Feature records of unchanged examples, copied from file to file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from transforms.extraction.feature_files.part import Part
from transforms.extraction.reuse.base import parse_fields
from transforms.extraction.reuse.matching import Match
from transforms.runtime import counters
from transforms.storage import filesystems
from transforms.storage.records import feature_record, tfrecords


class CopyDoFn(beam.DoFn):
    """Copies records of a file of the base: (name, matches) → WrittenPart, and `id_buckets` under
    the tag `IDS`.
    """

    def __init__(self, base: str, directory: str) -> None:
        """Takes the directories of the base and of the new feature set."""
        self._base = base
        self._directory = directory

    def process(self, element: tuple[str, Iterable[Match]]) -> Iterator[Any]:
        matches = sorted(element[1], key=lambda match: match.file.index)
        payloads = tfrecords.split_frames(filesystems.read_verified(self._base, matches[0].stored))
        # All copies of a file go into one file, so that there are no more files than the base has,
        # however far examples have moved.
        part = Part(matches[0].file, self._directory)
        for match in matches:
            _copy(payloads, match, part)
        counters.add("examples-unchanged", part.examples)
        written = part.finish()
        if written is not None:
            yield written
            yield from part.id_buckets(written)


def _copy(payloads: Sequence[bytes], match: Match, part: Part) -> None:
    order = np.argsort(match.offsets, kind="stable")
    offsets, source = match.offsets[order], match.file.path
    matched = [payloads[row] for row in match.rows[order]]
    relocated, example_ids = relocate(matched, source, offsets.tolist())
    part.add(relocated, source, offsets, example_ids)


def relocate(
    payloads: Sequence[bytes], source: str, offsets: Sequence[int]
) -> tuple[list[bytes], list[bytes]]:
    """Gives feature records the file and the offsets where their examples are now.

    Returns:
        The n records, and their ids.
    """
    text = tf.io.FixedLenFeature([], tf.string)
    number = tf.io.FixedLenFeature([], tf.int64)
    fields = parse_fields(payloads, {"example_id": text, "source": text, "offset": number})
    origins = zip(fields["source"].tolist(), fields["offset"].tolist(), strict=True)
    name = source.encode()
    relocated = [
        payload if origin == (name, offset) else feature_record.relocate(payload, source, offset)
        for payload, offset, origin in zip(payloads, offsets, origins, strict=True)
    ]
    return relocated, fields["example_id"].tolist()
