"""A feature file in the making, and the limits of its size."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np

from transforms.core.ids import id_hashes
from transforms.examples import rejects
from transforms.examples.format import InputFile
from transforms.examples.rejects import Reject
from transforms.extraction.feature_files.unique_ids import id_buckets
from transforms.extraction.feature_files.written_part import WrittenPart
from transforms.runtime import counters
from transforms.storage import filesystems
from transforms.storage.feature_set_checks import BYTES_PER_FILE, RECORDS_PER_FILE
from transforms.storage.filesystems import NewFile, StoredFile
from transforms.storage.records import tfrecords

# A TFRecord frame around a payload: 8 bytes of length and two checksums of 4.
_FRAME_BYTES = 16


@dataclasses.dataclass(frozen=True)
class FileLimits:
    """How large a feature file becomes: it is full once it reaches one of the limits.

    The records of an example stay together, so a file may pass a limit by one example's positions.

    Attributes:
        records: records, or rejects beside them.
        bytes: bytes on disk.
    """

    records: int = RECORDS_PER_FILE
    bytes: int = BYTES_PER_FILE


DEFAULT_LIMITS = FileLimits()


class Part:
    """A feature file in the making, and the rejects that are written beside it.

    Attributes:
        file: the file of examples that it is a part of, or that its first records come from.
        count: number of records.
        examples: number of examples with records.
        rejects: the rejects, in any order; whoever writes the part adds them.
    """

    def __init__(
        self, file: InputFile, directory: str, limits: FileLimits = DEFAULT_LIMITS
    ) -> None:
        """Begins a part in a directory; nothing is written before the first record."""
        self.file = file
        self.count = 0
        self.examples = 0
        self.rejects: list[Reject] = []
        self._directory = directory
        self._limits = limits
        self._start: int | None = None
        self._writer = uuid.uuid4().hex[:8]
        self._features: NewFile | None = None
        self._hashes: list[np.ndarray] = []
        self._last: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        """Number of bytes of records so far."""
        return self._features.size if self._features else 0

    @property
    def is_full(self) -> bool:
        """Whether the part has reached one of its limits."""
        return (
            self.count >= self._limits.records
            or len(self.rejects) >= self._limits.records
            or self.size >= self._limits.bytes
        )

    def count_fitting(self, payloads: Sequence[bytes], source: str, offsets: np.ndarray) -> int:
        """Returns how many of these next records belong into the part.

        These are as many as fill it, and the further positions of the last example in it.
        """
        if self.is_full:
            fit = 0
        else:
            sizes = np.cumsum([len(payload) + _FRAME_BYTES for payload in payloads])
            fit = min(
                self._limits.records - self.count,
                1 + int(np.searchsorted(sizes, self._limits.bytes - self.size)),
            )
        last = (source, offsets[fit - 1]) if 0 < fit <= len(offsets) else self._last
        while fit < len(offsets) and last == (source, offsets[fit]):
            fit += 1
        return min(fit, len(offsets))

    def add(
        self,
        payloads: Sequence[bytes],
        source: str,
        offsets: np.ndarray,
        example_ids: Sequence[bytes],
    ) -> None:
        """Adds records of examples of one file, in order; positions of one example follow each
        other.

        Args:
            payloads: [n] serialized feature records.
            source: path of the file of examples.
            offsets: [n] indices of the examples in that file.
            example_ids: [n] ids of the records.
        """
        if not payloads:
            return
        first, last = int(offsets[0]), int(offsets[-1])
        self.examples += int(np.count_nonzero(np.diff(offsets))) + (self._last != (source, first))
        self._last = source, last
        if self._features is None:
            self._start = first
            self._features = NewFile(self._directory, f"features-{self._stem(first)}.tfrecord")
        self._features.add(tfrecords.join_frames(payloads))
        self._hashes.append(id_hashes(example_ids))
        self.count += len(payloads)

    def finish(self) -> WrittenPart | None:
        """Writes what is left and gives the files their names; returns None if the part is
        empty.
        """
        if not self._features and not self.rejects:
            return None
        ordered = sorted(self.rejects, key=lambda reject: reject.offset)
        start = self.rejects[0].offset if self._start is None else self._start
        features = None
        if self._features:
            features = self._features.finish(self.count)
            counters.add("feature-bytes-written", features.size)
        return WrittenPart(
            (self.file.index, start),
            features,
            self._write_rejects(ordered, start),
            self.examples,
            rejects.count_reasons(self.rejects),
            ordered[0] if ordered else None,
        )

    def discard(self) -> None:
        """Deletes what is written, unless the part is finished."""
        if self._features:
            self._features.discard()

    def id_buckets(self, written: WrittenPart) -> Iterator[beam.pvalue.TaggedOutput]:
        """Yields hashes of the ids of the finished part, as `unique_ids.id_buckets`."""
        if written.features:
            yield from id_buckets(written.features, np.concatenate(self._hashes))

    def _write_rejects(self, ordered: Sequence[Reject], start: int) -> StoredFile | None:
        if not ordered:
            return None
        name = f"rejected-{self._stem(start)}.jsonl"
        return filesystems.write(self._directory, name, rejects.to_jsonl(ordered), len(ordered))

    def _stem(self, start: int) -> str:
        return f"{self.file.index:05d}-{start:010d}-{self._writer}"
