"""A committed feature set: its files, read, verified and parsed by ranges of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Shape, Span
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record, tfrecords
from transforms.storage.records.example_columns import DamagedRecord

# Share of a file's records up to which they are read one by one, each by a seek, instead of the
# whole file.
_FEW = 1 / 16


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """A committed feature set: its directory and its manifest."""

    directory: str
    manifest: FeatureManifest

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of records of its files."""
        return tuple(file.count for file in self.manifest.files)

    @property
    def shape(self) -> Shape:
        """T, C and D of its records."""
        return Shape(len(self.manifest.checkpoints), self.manifest.outputs, self.manifest.units)

    def payloads(self, span: Span) -> list[bytes]:
        """Reads and verifies serialized records."""
        return tfrecords.split_frames(
            filesystems.read_verified(self.directory, self.manifest.files[span.file]),
            span.start,
            span.stop,
        )

    def decode(self, payloads: Sequence[bytes], span: Span | None = None) -> Features:
        """Parses serialized records; `span`, where they are from, serves messages.

        Raises:
            InputError: a record is damaged.
        """
        shape, manifest = self.shape, self.manifest
        try:
            return feature_record.decode(
                payloads,
                shape.checkpoints,
                shape.outputs,
                shape.units,
                manifest.integer_labels,
                manifest.feature_dtype,
            )
        except DamagedRecord as error:
            where, index = self.directory, error.index
            if span is not None:
                where = filesystems.join(self.directory, manifest.files[span.file].name)
                index += span.start
            raise InputError(
                f"{where}: record {index} is damaged: {error.reason}; compute the set again"
            ) from error

    def read(self, spans: Sequence[Span]) -> Features:
        """Reads, verifies and parses records; `spans` holds at least one."""
        return Features.concatenate([self.decode(self.payloads(span), span) for span in spans])

    def take(self, rows: np.ndarray) -> Features:
        """Reads, verifies and parses the records of some rows of the set; each file is read once.

        A few records of a file on this machine are read alone, and verified by their own checksums.

        Args:
            rows: [m] integers from 0, in any order and perhaps repeated.

        Raises:
            IndexError: a row is not in the set.
            InputError: a file is damaged or gone.
        """
        rows, count = np.asarray(rows, np.int64), sum(self.counts)
        outside = rows[(rows < 0) | (rows >= count)]
        if len(outside):
            raise IndexError(f"row {outside[0]} is not among the {count} of {self.directory}")
        ascending, order = np.unique(rows, return_inverse=True)
        features = self._take(ascending)
        return features if np.array_equal(ascending, rows) else features.take(order)

    def _take(self, rows: np.ndarray) -> Features:
        """Reads the records of rows [m], ascending and each once."""
        borders = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        payloads: list[bytes] = []
        for file in np.unique(np.searchsorted(borders, rows, side="right") - 1).tolist():
            indices = rows[(rows >= borders[file]) & (rows < borders[file + 1])] - borders[file]
            if len(indices) < _FEW * self.counts[file] and filesystems.is_local(self.directory):
                payloads += self._pick(self.manifest.files[file], indices.tolist())
            else:
                first = int(indices[0])
                read = self.payloads(Span(file, first, int(indices[-1]) + 1))
                payloads += [read[index - first] for index in indices.tolist()]
        return self.decode(payloads)

    def _pick(self, file: StoredFile, indices: Sequence[int]) -> list[bytes]:
        path = filesystems.join(self.directory, file.name)
        try:
            with open(path, "rb") as stream:
                return tfrecords.pick_frames(stream, indices)
        except (OSError, ValueError) as error:
            message = filesystems.describe_error(error)
            raise InputError(
                f"{path} is damaged or gone: {message}; compute the set again"
            ) from error
