"""Shapes of feature records, and ranges of records in the files of a feature set."""

from __future__ import annotations

import dataclasses

# Bytes of a record in a file beside its arrays, about: keys, id, name of the source, framing.
_STORED_RECORD_BYTES = 350


@dataclasses.dataclass(frozen=True)
class Span:
    """Records `start` to `stop` of file number `file` of a feature set's manifest."""

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
        """Bytes of one record in memory: its arrays, its id (at most 512 bytes) and labels."""
        return self.checkpoints * (4 * (self.outputs + self.units) + 20) + 600

    def stored_bytes(self, feature_dtype: str) -> int:
        """Estimates the bytes of one record in a file, with arrays of this dtype."""
        return (
            self.checkpoints
            * ((4 if feature_dtype == "float32" else 2) * (self.outputs + self.units) + 20)
            + _STORED_RECORD_BYTES
        )

    @property
    def pair_flops(self) -> int:
        """Floating-point operations of one pair in factored form, `2 T (C + D)`."""
        return 2 * self.checkpoints * (self.outputs + self.units)
