"""What travels in stage 1: batches of extracted features, and the parts of a set that were
written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transforms.core.features import Features
from transforms.core.ids import id_array
from transforms.examples.format import InputFile
from transforms.examples.rejects import Reject
from transforms.storage.filesystems import StoredFile

# Outputs of the steps that find or write parts.
PARTS, IDS = "parts", "ids"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of up to a batch of examples of one file, in order, and what was set aside among
    them; fields as in `ExampleBatch`.

    Of a model that works on positions `offsets`, `digests` and `kept` are those of their examples,
    once for each of their positions.
    """

    file: InputFile
    features: Features
    offsets: np.ndarray
    digests: np.ndarray
    kept: Mapping[str, Sequence[bytes]]
    rejects: list[Reject]
    first: bool
    last: bool


NO_FEATURES = Features.of(
    id_array([]),
    np.empty((0, 1)),
    np.empty((0, 1)),
    np.empty(0),
    np.empty((0, 0)),
    np.empty((0, 0, 0)),
    np.empty((0, 0, 0)),
)


@dataclasses.dataclass(frozen=True)
class WrittenPart:
    """A feature file that was written, what was set aside beside it, and what a person should know
    of that.

    Attributes:
        order: place of the part in the set: index of its input file, index of its first record
            there.
        features: the file of features, or None where all was set aside.
        rejected: the file of rejects, or None where nothing was.
        examples: how many examples have records in it.
        reasons: how many rejects, by reason.
        first_reject: one of them, as an example.
    """

    order: tuple[int, int]
    features: StoredFile | None
    rejected: StoredFile | None
    examples: int
    reasons: Mapping[str, int]
    first_reject: Reject | None
