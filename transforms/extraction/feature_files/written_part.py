"""A part of a feature set that is on disk, as its manifest needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from transforms.examples.rejects import Reject
from transforms.storage.filesystems import StoredFile

# Tags of the outputs of steps that write or find parts: WrittenPart, and hashes of ids (see
# `unique_ids.id_buckets`).
PARTS, IDS = "parts", "ids"


@dataclasses.dataclass(frozen=True)
class WrittenPart:
    """A feature file on disk, and the file of rejects beside it.

    Attributes:
        order: position of the part in the set: index of its input file, index of its first record
            there.
        features: the feature file, or None where every example was rejected.
        rejected: the file of rejects, or None without any.
        examples: number of examples with records in `features`.
        reasons: number of rejects by reason.
        first_reject: one of the rejects, for a message.
    """

    order: tuple[int, int]
    features: StoredFile | None
    rejected: StoredFile | None
    examples: int
    reasons: Mapping[str, int]
    first_reject: Reject | None
