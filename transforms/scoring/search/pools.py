"""What a search of a chunk works on: both sides, groups of test rows, and pools of candidates."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from transforms.scoring.error_bounds import bound_margin, product_margin
from transforms.scoring.influence import Scoring
from transforms.scoring.kernels import heaps
from transforms.scoring.kernels.layout import NO_COLUMN, Bounding, Pool, Sides
from transforms.scoring.kernels.simd import GROUP_SIZE
from transforms.scoring.search.layout import ChunkLayout, TestLayout
from transforms.scoring.search.tuning import SearchTuning


class Best(NamedTuple):
    """The best candidates of one sign of some test rows in a chunk, of each row best first.

    Attributes:
        rows: [P] int32, test rows.
        scores: [P] float64.
        trains: [P] int32, training rows of the chunk.
    """

    rows: np.ndarray
    scores: np.ndarray
    trains: np.ndarray


class Part(NamedTuple):
    """The outcome of a search of some test rows.

    Attributes:
        rows: [n] the test rows.
        best: their best candidates, by sign.
        left: [n] bool, rows that are left to be searched otherwise.
        counts: pairs by the way in which they were decided; see `exact_search.COUNTS`.
    """

    rows: np.ndarray
    best: list[Best]
    left: np.ndarray
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkSearch:
    """Test examples and a chunk of training examples.

    Attributes:
        tests, chunk: both sides, laid out.
        alive: [n] bool, test examples with a gradient; others have no candidates.
        floors: [2, n] float64, thresholds known so far, which the search raises; 0 for none.
        scoring: what a score is, and k.
        tuning: sizes and thresholds of heuristics.
    """

    tests: TestLayout
    chunk: ChunkLayout
    alive: np.ndarray
    floors: np.ndarray
    scoring: Scoring
    tuning: SearchTuning

    @property
    def bounding(self) -> Bounding:
        """What bounds of scores are made from."""
        _, checkpoints, outputs = self.tests.factors.loss_grads.shape
        margin = bound_margin(checkpoints, outputs)
        return Bounding(self.tests.terms, self.chunk.groups, margin)

    @property
    def product_margin(self) -> float:
        """The error of a float32 score; see `error_bounds.product_margin`."""
        factors = self.tests.factors
        _, checkpoints, outputs = factors.loss_grads.shape
        return product_margin(checkpoints, outputs, factors.activations.shape[2])

    def sides(self, rows: np.ndarray) -> Sides:
        """Returns both sides of the search of some test rows."""
        rates = np.asarray(self.scoring.learning_rates, np.float64)
        return Sides(self.tests.factors, rows, self.chunk.factors, rates, self.chunk.ranks)

    def sample(self, rows: np.ndarray) -> ChunkSearch:
        """Returns the search of some test examples alone, laid out anew."""
        tests = TestLayout(
            self.tests.features.take(rows),
            self.scoring,
            self.tests.directions,
            self.tuning.left_out_norm,
        )
        return dataclasses.replace(
            self, tests=tests, alive=self.alive[rows], floors=self.floors[:, rows]
        )

    def cut_rows(self, rows: np.ndarray, most: int, at_once: int) -> list[np.ndarray]:
        """Cuts test rows into groups of `most` at most, `at_once` of which are in work.

        Where it is more than one, the last are smaller, to end together.
        """
        row_bytes = 8 * (5 * self.scoring.k + 3 * (self._room + GROUP_SIZE))
        most = int(np.clip(self.tuning.pool_bytes // at_once // row_bytes, 16, most))
        fewest = min(self.tuning.fewest_tests, most)
        groups = []
        while len(rows):
            size = most
            if at_once > 1:
                size = int(np.clip(len(rows) // (2 * at_once), fewest, most))
            groups.append(rows[:size])
            rows = rows[size:]
        return groups

    def pool(self, rows: np.ndarray, pilots: int = 0) -> Pool:
        """Returns an empty pool for some test rows, with room for so many pilots of each."""
        n, k, room = len(rows), self.scoring.k, self._room + GROUP_SIZE
        return Pool(
            np.zeros((2, n, k)),
            np.zeros((2, n, k), np.int32),
            np.zeros((2, n), np.int64),
            # Of fewer training examples than k, any can be among the k best of all.
            self.floors[:, rows].copy(),
            np.empty((2, n, room)),
            np.empty((2, n, room), np.int32),
            np.zeros((2, n), np.int64),
            np.full((2, n, pilots), NO_COLUMN, np.int32),
            np.zeros((n, 3), np.int64),
        )

    @property
    def _room(self) -> int:
        """Candidates of a test example that are listed before they are sifted."""
        return min(4 * self.scoring.k + 128, len(self.chunk) + 1)


def counts_of(pool: Pool) -> dict[str, int]:
    """Returns the numbers of pairs that were examined one by one, and scored."""
    return {"examined": int(pool.tally[:, 1].sum()), "scored": int(pool.tally[:, 2].sum())}


def best_of(pool: Pool, rows: np.ndarray, ranks: np.ndarray) -> list[Best]:
    """Returns a pool's best candidates of these test rows, by sign."""
    best = []
    for sign, direction in enumerate((1, -1)):
        indices, scores, trains = heaps.take_best(pool, ranks, sign)
        best.append(Best(rows[indices].astype(np.int32), direction * scores, trains))
    return best
