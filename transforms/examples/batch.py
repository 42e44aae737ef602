"""Examples as arrays: one parsed example, and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import xxhash

from transforms.examples.format import InputFile
from transforms.examples.rejects import Reject


@dataclasses.dataclass(frozen=True)
class ParsedExample:
    """One example.

    Attributes:
        example_id: its id.
        inputs: an array of the model's shape and dtype for each input of the model.
        label: [label_width] float64, or None where labels are not read.
        kept: the features of the kept keys, by key.
    """

    example_id: str
    inputs: tuple[np.ndarray, ...]
    label: np.ndarray | None
    kept: Mapping[str, tf.train.Feature]


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleBatch:
    """Up to a batch of examples of one file, in order, and the rejects among them.

    Attributes:
        file: the file that they come from.
        example_ids: [n] byte strings (dtype S), UTF-8.
        offsets: [n] int64, record indices in the file.
        digests: [n, 16] uint8, content digests of the serialized examples.
        kept: by kept key the serialized `tf.train.Feature` of each example, [n].
        inputs: an array [n, …] for each input of the model.
        labels: [n, label_width] float64, or None where labels are not read.
        rejects: the rejects since the batch before.
        first: whether the file begins with this batch.
        last: whether the file ends with this batch.
        bytes_read: bytes of the stored file that were read since the batch before.
    """

    file: InputFile
    example_ids: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray
    kept: Mapping[str, Sequence[bytes]]
    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    rejects: list[Reject]
    first: bool = False
    last: bool = False
    bytes_read: int = 0

    def __len__(self) -> int:
        return len(self.example_ids)

    def take(self, rows: np.ndarray) -> ExampleBatch:
        """Returns the batch with only these rows [m] of its examples; its rejects stay."""
        return dataclasses.replace(
            self,
            example_ids=self.example_ids[rows],
            offsets=self.offsets[rows],
            digests=self.digests[rows],
            kept=take_kept(self.kept, rows),
            inputs=tuple(array[rows] for array in self.inputs),
            labels=None if self.labels is None else self.labels[rows],
        )


def take_kept(
    kept: Mapping[str, Sequence[bytes]], rows: np.ndarray
) -> Mapping[str, Sequence[bytes]]:
    """Returns the kept features of only these rows [m]."""
    return {key: [features[row] for row in rows.tolist()] for key, features in kept.items()}


def digest(serialized: bytes) -> bytes:
    """Returns the content digest of a serialized example: XXH3, 128 bits.

    It tells apart examples that differ by accident. It does not withstand somebody who looks for
    two examples with the same digest.
    """
    return xxhash.xxh3_128_digest(serialized)


def digests(serialized: Sequence[bytes]) -> np.ndarray:
    """Returns the content digests of n serialized examples: [n, 16] uint8."""
    return np.frombuffer(b"".join(map(digest, serialized)), np.uint8).reshape(len(serialized), 16)
