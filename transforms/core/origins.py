"""Where feature records came from: file, record index, content digest, and the keys that are
kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a record came from: file, record index, digest of the serialized example, and the keys
    that are kept of it.
    """

    source: str
    offset: int
    content_digest: bytes
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
    """Where n records came from, as arrays: an object for each would be several times as large
    where they travel.

    Attributes:
        sources: names of files, each once.
        source: [n] int32, the file of each, by its place among these.
        offsets: [n] int64, record indices.
        digests: [n, 16] uint8, content digests.
    """

    sources: tuple[str, ...]
    source: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray

    @staticmethod
    def of(origins: Sequence[Origin]) -> Origins:
        """The same of each by itself; digests of one length."""
        place = {source: i for i, source in enumerate(dict.fromkeys(one.source for one in origins))}
        return Origins(
            tuple(place),
            np.array([place[one.source] for one in origins], np.int32),
            np.array([one.offset for one in origins], np.int64),
            np.frombuffer(b"".join(one.content_digest for one in origins), np.uint8).reshape(
                len(origins), -1 if origins else 0
            ),
        )
