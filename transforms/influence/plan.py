"""What stage 2 is asked for: k, normalisation, memory, tiles."""

from __future__ import annotations

import dataclasses
import os

from transforms.core.errors import InputError
from transforms.core.shapes import Shape
from transforms.scoring import summed_tiles
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import Grid, choose_grid
from transforms.storage.feature_manifest import BYTES_PER_FILE, FeatureManifest, usable_rates
from transforms.storage.feature_set import FeatureSet


@dataclasses.dataclass(frozen=True)
class ScoringPlan:
    """What stage 2 is asked for, before the sets are known.

    Attributes:
        learning_rates: η of each checkpoint, or None for those of the training set's manifest.
        k: how many proponents and opponents of each test example.
        normalize: see `scoring.Scoring`.
        memory_gb: memory budget of a machine, in GB.
        processes: worker processes that share a machine, or None for one per processor.
        test_rows, train_rows: a grid given by hand, or None.
        sum_positions: whether scores are sums over the positions of examples, which records are of;
            see `summed_scores`.
    """

    learning_rates: tuple[float, ...] | None
    k: int
    normalize: str
    memory_gb: float
    processes: int | None = 1
    test_rows: int | None = None
    train_rows: int | None = None
    sum_positions: bool = False

    def scoring(self, train: FeatureManifest) -> Scoring:
        """The scoring of a training set.

        Raises:
            InputError: no usable learning rate is known for some checkpoint.
        """
        return Scoring(usable_rates(train, self.learning_rates), self.k, self.normalize)

    def grid(self, test: FeatureSet, train: FeatureSet) -> Grid:
        """The grid for two sets.

        Raises:
            InputError: the memory budget is too small.
        """
        if not self.sum_positions:
            return self._grid(train.shape, sum(test.counts), sum(train.counts))
        tests, trains = (one.manifest.counts["examples"] for one in (test, train))
        return self._grid(train.shape, tests, trains, largest_file(test.manifest, train.manifest))

    def check_memory(self, shape: Shape, largest: int = 0) -> None:
        """Makes sure, before anything is computed, that the memory budget suffices; where workers
        share it, only they can tell.

        `largest` is the size of the largest feature file, as far as it is known; it counts where
        positions are summed.

        Raises:
            InputError: it is too small.
        """
        if self.processes is not None:
            self._grid(shape, 1, 1 << 40, largest)

    def _grid(self, shape: Shape, tests: int, trains: int, largest: int = 0) -> Grid:
        memory_bytes = self.memory_gb * 1e9 / (self.processes or os.cpu_count() or 1)
        try:
            if self.sum_positions:
                extra = summed_tiles.file_bytes(largest, BYTES_PER_FILE)
                return summed_tiles.choose_grid(
                    shape,
                    tests,
                    trains,
                    self.k,
                    memory_bytes,
                    extra,
                    self.test_rows,
                    self.train_rows,
                )
            return choose_grid(
                shape, tests, trains, self.k, memory_bytes, self.test_rows, self.train_rows
            )
        except ValueError as error:
            raise InputError(f"`memory_gb={self.memory_gb:g}`: {error}") from error


def largest_file(*sets: FeatureManifest) -> int:
    """The size of the largest feature file of some sets."""
    return max((file.size for one in sets for file in one.files), default=0)
