"""Stage 2: from two feature sets to the k strongest proponents and opponents of each test example.

What travels is tiles and blocks of candidate arrays, never pairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.influence.blocks import MergeTopK, ScoredBlock
from transforms.influence.plan import ScoringPlan
from transforms.runtime import counters
from transforms.runtime.prefetch import prefetch
from transforms.scoring import thresholds
from transforms.scoring.exact_search import Search
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import Tile, chunks, rows_per_file, tiles
from transforms.storage.feature_manifest import check_same_model
from transforms.storage.feature_set import FeatureSet


@dataclasses.dataclass(frozen=True, eq=False)
class Again:
    """Test examples of a block that have to be searched once more.

    Attributes:
        rows: [m], their rows in the block, ascending.
        proven: [2, m] float64, thresholds that are known to be reached.
    """

    rows: np.ndarray
    proven: np.ndarray


# Outputs of the step that checks thresholds.
_WHOLE, _IN_PART, _AGAIN = "whole", "in-part", "again"


def plan_tiles(test: FeatureSet, train: FeatureSet, plan: ScoringPlan) -> Iterator[Tile]:
    """The tiles of two feature sets, as logged.

    Raises:
        InputError: the sets do not fit each other or the plan, or the training set is empty.
    """
    check_same_model(test.manifest, train.manifest, test.directory, train.directory)
    plan.scoring(train.manifest)
    if not sum(train.counts):
        raise InputError(f"{train.directory} holds no example: there is nothing to score against")
    grid = plan.grid(test, train)
    planned = list(_tiles(test, train, plan))
    logging.getLogger(__name__).info(
        "%d test x %d train examples: %d tiles of %d x %d",
        sum(test.counts),
        sum(train.counts),
        len(planned),
        grid.test_rows,
        grid.train_rows,
    )
    counters.add("pairs-planned", sum(test.counts) * sum(train.counts))
    yield from planned


def plan_again(
    block: tuple[int, Again], test: FeatureSet, train: FeatureSet, plan: ScoringPlan
) -> Iterator[tuple[Tile, Again]]:
    """The tiles of a block, (test_start, Again), some of whose test examples have to be searched
    once more.
    """
    start, again = block
    for tile in _tiles(test, train, plan):
        if tile.test_start == start:
            yield tile, again


def _tiles(test: FeatureSet, train: FeatureSet, plan: ScoringPlan) -> Iterator[Tile]:
    return tiles(plan.grid(test, train), test.counts, train.counts, rows_per_file(plan.k))


class TileScorer:
    """Scores tiles, one at a time; keeps the test block of the tile before and what is known of its
    thresholds: neighbours share both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[Any, ...] | None = None
        self._tests: Features | None = None
        self._proven: np.ndarray | None = None

    def score(
        self,
        tile: Tile,
        test: FeatureSet,
        train: FeatureSet,
        scoring: Scoring,
        guesses: np.ndarray | None = None,
        again: Again | None = None,
    ) -> ScoredBlock:
        """The best candidates of a tile; of those that other tiles' scores prove not to be among
        the k best, none.

        Nor of those below `guesses` [2, n], thresholds of the block's test examples. `again` are
        those of them that alone are searched.
        """
        with self._lock:
            key = (
                test.directory,
                test.manifest.fingerprint,
                tile.tests,
                train.directory,
                train.manifest.fingerprint,
                scoring,
            )
            if self._tests is None or self._proven is None or self._key != key:
                self._tests = self._proven = None
                self._tests, self._key = test.read(tile.tests), key
                self._proven = np.zeros((2, len(self._tests)))
            tests, rows = self._tests, slice(None) if again is None else again.rows
            floors = self._proven[:, rows]
            if again is not None:
                floors = np.maximum(floors, again.proven)
            elif guesses is not None:
                floors = np.maximum(floors, guesses)
            searched = Search(tests.take(rows), scoring, floors=floors)
            self._scan(searched, tile, train, "pairs-" if again is None else "again-")
            best = searched.result()
            self._proven[:, rows] = np.maximum(
                self._proven[:, rows], thresholds.proven(best, floors.shape[1], scoring.k)
            )
            block = ScoredBlock.of(
                tests, best if again is None else best.of_rows(again.rows), scoring
            )
            counters.add("bytes-shuffled", block.nbytes)
            return block

    @staticmethod
    def _scan(searched: Search, tile: Tile, train: FeatureSet, prefix: str) -> None:
        ahead = prefetch(
            (train.read(spans) for spans in chunks(tile.trains, tile.chunk_rows)), depth=1
        )
        with contextlib.closing(ahead):
            for chunk in ahead:
                for pairs in searched.scan(chunk):
                    counters.add("pairs-scored", pairs)
        for name, count in searched.counts.items():
            counters.add("pairs-scored-exactly" if name == "scored" else f"{prefix}{name}", count)


# One for all threads of a process: a multiplication uses all cores, and the memory budget is of one
# tile and one test block.
_scorer = TileScorer()


class _ScoreDoFn(beam.DoFn):
    def __init__(self, plan: ScoringPlan) -> None:
        self._plan = plan

    def process(
        self,
        tile: Tile,
        test: FeatureSet,
        train: FeatureSet,
        guesses: Mapping[int, np.ndarray] | None = None,
    ) -> Iterator[tuple[int, ScoredBlock]]:
        scoring, own = (
            self._plan.scoring(train.manifest),
            guesses.get(tile.test_start) if guesses else None,
        )
        yield tile.test_start, _scorer.score(tile, test, train, scoring, own)


class _ScoreAgainDoFn(beam.DoFn):
    def __init__(self, plan: ScoringPlan) -> None:
        self._plan = plan

    def process(
        self, element: tuple[Tile, Again], test: FeatureSet, train: FeatureSet
    ) -> Iterator[tuple[int, ScoredBlock]]:
        tile, again = element
        yield (
            tile.test_start,
            _scorer.score(tile, test, train, self._plan.scoring(train.manifest), again=again),
        )


def guess_thresholds(
    first: tuple[int, ScoredBlock], test: FeatureSet, train: FeatureSet, plan: ScoringPlan
) -> Iterator[tuple[int, np.ndarray]]:
    """The thresholds that the first tile of a block, (test_start, ScoredBlock), lets guess, if
    there are others: (test_start, [2, n]).
    """
    start, block = first
    trains, rows = sum(train.counts), plan.grid(test, train).train_rows
    if rows < trains:
        yield start, thresholds.guessed(block.best, len(block.test_ids), plan.k, rows / trains)


class _CheckDoFn(beam.DoFn):
    """Sorts out the test examples of a merged block that were searched by too high a guess:
    (test_start, ScoredBlock) → the same.

    A block without them is passed on; else what is proven of it goes to `_IN_PART`, and the others,
    (test_start, Again), to `_AGAIN`.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def process(
        self, merged: tuple[int, ScoredBlock], guesses: Mapping[int, np.ndarray], train: FeatureSet
    ) -> Iterator[tuple[int, ScoredBlock] | beam.pvalue.TaggedOutput]:
        start, block = merged
        n = len(block.test_ids)
        rows = (
            thresholds.unproven(block.best, n, self._k, guesses[start])
            if start in guesses
            else np.empty(0, np.int64)
        )
        if not len(rows):
            yield start, block
            return
        counters.add("pairs-planned", len(rows) * sum(train.counts))
        counters.add("tests-again", len(rows))
        again = Again(rows, thresholds.proven(block.best, n, self._k)[:, rows])
        yield beam.pvalue.TaggedOutput(
            _IN_PART, (start, dataclasses.replace(block, best=block.best.without(rows)))
        )
        yield beam.pvalue.TaggedOutput(_AGAIN, (start, again))


@dataclasses.dataclass
class ScoreInfluence(beam.PTransform):
    """Stage 2 up to the global top k: (test, train) feature sets → (row of the block's first test
    example, ScoredBlock).

    Attributes:
        plan: what is asked for.
    """

    plan: ScoringPlan

    def expand(self, sets: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        test, train = sets  # FeatureSet (one), FeatureSet (one)
        both = beam.pvalue.AsSingleton(test), beam.pvalue.AsSingleton(train)
        planned = test | "PlanTiles" >> beam.FlatMap(plan_tiles, both[1], self.plan)  # Tile
        first_blocks = (
            planned
            | "TakeFirstTiles" >> beam.Filter(lambda tile: tile.train_start == 0)  # Tile
            | "SpreadFirstTiles" >> beam.Reshuffle()  # Tile
            | "ScoreFirstTiles"
            >> beam.ParDo(_ScoreDoFn(self.plan), *both)  # (test_start, ScoredBlock)
        )
        guesses = beam.pvalue.AsDict(
            first_blocks
            | "GuessThresholds"
            >> beam.FlatMap(guess_thresholds, *both, self.plan)  # (test_start, [2, n])
        )
        other_blocks = (
            planned
            | "TakeOtherTiles" >> beam.Filter(lambda tile: tile.train_start > 0)  # Tile
            | "SpreadTiles" >> beam.Reshuffle()  # Tile
            | "ScoreTiles"
            >> beam.ParDo(_ScoreDoFn(self.plan), *both, guesses)  # (test_start, ScoredBlock)
        )
        checked = (
            (first_blocks, other_blocks)
            | "JoinTiles" >> beam.Flatten()  # (test_start, ScoredBlock)
            | "MergeTopK" >> beam.CombinePerKey(MergeTopK(self.plan.k))  # (test_start, ScoredBlock)
            | "CheckThresholds"
            >> beam.ParDo(_CheckDoFn(self.plan.k), guesses, both[1]).with_outputs(
                _IN_PART, _AGAIN, main=_WHOLE
            )
        )
        blocks_again = (
            checked[_AGAIN]  # (test_start, Again)
            | "PlanAgain" >> beam.FlatMap(plan_again, *both, self.plan)  # (Tile, Again)
            | "SpreadAgain" >> beam.Reshuffle()  # (Tile, Again)
            | "ScoreAgain"
            >> beam.ParDo(_ScoreAgainDoFn(self.plan), *both)  # (test_start, ScoredBlock)
        )
        mended = (
            (checked[_IN_PART], blocks_again)
            | "JoinAgain" >> beam.Flatten()  # (test_start, ScoredBlock)
            | "MergeAgain"
            >> beam.CombinePerKey(MergeTopK(self.plan.k))  # (test_start, ScoredBlock)
        )
        return (
            checked[_WHOLE],
            mended,
        ) | "JoinBlocks" >> beam.Flatten()  # (test_start, ScoredBlock)
