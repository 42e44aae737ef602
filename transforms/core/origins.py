"""Origins of feature records: file, record index, content digest, and kept keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a feature record.

    Attributes:
        source: the file of the example.
        offset: its record index in the file.
        content_digest: of the serialized example.
        kept: the `tf.train.Feature` of each kept key.
    """

    source: str
    offset: int
    content_digest: bytes
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
    """The origins of n feature records, as arrays: objects would be several times as large in
    transfers.

    Attributes:
        sources: names of files, each once.
        source: [n] int32, indices of files in `sources`.
        offsets: [n] int64, record indices.
        digests: [n, 16] uint8, content digests.
    """

    sources: tuple[str, ...]
    source: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray

    @staticmethod
    def of(origins: Sequence[Origin]) -> Origins:
        """Makes columns of single origins, whose digests have one length."""
        sources = dict.fromkeys(origin.source for origin in origins)
        index = {source: i for i, source in enumerate(sources)}
        digests = np.frombuffer(b"".join(origin.content_digest for origin in origins), np.uint8)
        return Origins(
            tuple(index),
            np.array([index[origin.source] for origin in origins], np.int32),
            np.array([origin.offset for origin in origins], np.int64),
            digests.reshape(len(origins), -1 if origins else 0),
        )
