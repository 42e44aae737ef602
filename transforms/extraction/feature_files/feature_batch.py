"""Features of a batch of examples, with where the examples came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transforms.core.features import Features
from transforms.core.ids import id_array
from transforms.examples.format import InputFile
from transforms.examples.rejects import Reject


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of up to a batch of examples of one file, in order, and the rejects among them.

    The fields are those of `ExampleBatch`. Where the model works on positions, `offsets`, `digests`
    and `kept` repeat an example's values for each of its positions.
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
