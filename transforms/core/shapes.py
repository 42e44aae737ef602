"""Shapes of feature records, and ranges of records in the files of a feature set."""

from __future__ import annotations

import dataclasses

# What a record takes in a file beside its arrays, about: the keys, the id, the name of its source,
# the framing.
_STORED_RECORD_BYTES = 350


@dataclasses.dataclass(frozen=True)
class Span:
    """Records `start` to `stop` of the file at place `file` of a feature set's manifest."""

    file: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Shape:
    """Numbers of checkpoints T, outputs C and units D (the trailing 1 of a bias counted)."""

    checkpoints: int
    outputs: int
    units: int

    @property
    def record_bytes(self) -> int:
        """Memory of one record's arrays, its id (at most 512 bytes) and labels."""
        return self.checkpoints * (4 * (self.outputs + self.units) + 20) + 600

    def stored_bytes(self, feature_dtype: str) -> int:
        """What one record takes in a file, about, with arrays of this dtype."""
        return (
            self.checkpoints
            * ((4 if feature_dtype == "float32" else 2) * (self.outputs + self.units) + 20)
            + _STORED_RECORD_BYTES
        )

    @property
    def pair_flops(self) -> int:
        """Arithmetic of one pair in factored form, `2 T (C + D)`."""
        return 2 * self.checkpoints * (self.outputs + self.units)
