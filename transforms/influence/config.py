"""What users ask of stage 2: how examples are scored, and what the report of a result shows."""

from __future__ import annotations

import dataclasses

from transforms.core.errors import InputError
from transforms.scoring.influence import NORMALIZATIONS


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
    """How the proponents and opponents of test examples are found.

    Attributes:
        k: number of proponents and of opponents of each test example.
        normalize: `none`; `cosine`, scores divided by √self-influence of both examples; or
            `relatif`, by that of the training example.
        learning_rates: η of each checkpoint, or None for those in the training set's manifest.
        sum_positions: whether scores are sums over all pairs of positions of two examples; then
            the records of both feature sets are positions.
        memory_gb: memory for scoring on each machine, in GB (10⁹ bytes).
        test_rows_per_tile, train_rows_per_tile: numbers of examples of a test block and of a
            training range, or None to choose them by the memory.

    Raises:
        InputError: a number is not positive, or the normalisation is unknown.
    """

    k: int = 10
    normalize: str = "none"
    learning_rates: tuple[float, ...] | None = None
    sum_positions: bool = False
    memory_gb: float = 2.0
    test_rows_per_tile: int | None = None
    train_rows_per_tile: int | None = None

    def __post_init__(self) -> None:
        for name in ("k", "memory_gb", "test_rows_per_tile", "train_rows_per_tile"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"`{name}={value}` is not positive: give a number above 0")
        if self.normalize not in NORMALIZATIONS:
            raise InputError(
                f"`normalize={self.normalize}` is unknown: give one of {', '.join(NORMALIZATIONS)}"
            )


@dataclasses.dataclass(frozen=True)
class InfluenceReportConfig:
    """What the report of an influence result shows besides its rows.

    Attributes:
        class_names: names of all classes, or None to show their numbers.
        notes: sentences about the result, shown after those that follow from the feature sets.
    """

    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
