"""Stage 2: from two feature sets to the k strongest proponents and opponents of each test example.

What travels is tiles and blocks of candidate arrays, never pairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core import topk
from transforms.influence.config import ScoringConfig
from transforms.influence.plan import grid_of, plan_tiles, protocol_of, scoring_of
from transforms.influence.protocol import ScoredBlock, ScoringProtocol, Search
from transforms.runtime import counters
from transforms.runtime.prefetch import prefetch
from transforms.scoring import thresholds
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import Tile
from transforms.storage.feature_set import FeatureSet

# Outputs of the step that checks thresholds.
_WHOLE, _IN_PART, _AGAIN = "whole", "in-part", "again"


@dataclasses.dataclass(frozen=True, eq=False)
class Again:
    """Test examples of a block that have to be searched once more.

    Attributes:
        rows: [m], their rows in the block, ascending.
        proven: [2, m] float64, thresholds that k training examples are known to reach.
    """

    rows: np.ndarray
    proven: np.ndarray


class MergeTopK(beam.CombineFn):
    """Merges the scored blocks of the same test examples, by array operations."""

    def __init__(self, k: int) -> None:
        self._k = k

    def create_accumulator(self) -> ScoredBlock | None:
        """Returns None: there is no block yet."""
        return None

    def add_input(self, accumulator: ScoredBlock | None, block: ScoredBlock) -> ScoredBlock:
        """Merges one more block."""
        return block if accumulator is None else self._merge([accumulator, block])

    def merge_accumulators(self, accumulators: Iterable[ScoredBlock | None]) -> ScoredBlock | None:
        """Merges the blocks of several workers."""
        blocks = [accumulator for accumulator in accumulators if accumulator is not None]
        return self._merge(blocks) if blocks else None

    def extract_output(self, accumulator: ScoredBlock | None) -> ScoredBlock | None:
        """Returns the merged block."""
        return accumulator

    def _merge(self, blocks: Sequence[ScoredBlock]) -> ScoredBlock:
        if len(blocks) == 1:
            return blocks[0]
        best = topk.merge([block.best for block in blocks], self._k)
        return dataclasses.replace(blocks[0], best=best)


class TileScorer:
    """Scores tiles, one at a time.

    It keeps the test block of the tile before and its proven thresholds: neighbours share both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[Any, ...] | None = None
        self._tests: Any = None
        self._proven = np.zeros((2, 0))

    def score(
        self,
        tile: Tile,
        test: FeatureSet,
        train: FeatureSet,
        protocol: ScoringProtocol[Any],
        scoring: Scoring,
        estimates: np.ndarray | None = None,
        again: Again | None = None,
    ) -> ScoredBlock:
        """Returns the k best candidates of a tile, without those below a threshold that earlier
        tiles prove, or below `estimates` [2, n], thresholds of the block's test examples.

        `again` restricts the search to some test examples, by proven thresholds alone.
        """
        with self._lock:
            self._keep_block(tile, test, train, protocol, scoring)
            tests, rows = self._tests, slice(None) if again is None else again.rows
            floors = self._proven[:, rows]
            if again is not None:
                floors = np.maximum(floors, again.proven)
            elif estimates is not None:
                floors = np.maximum(floors, estimates)
            search = protocol.search(tests.take(rows), scoring, floors)
            chunks = protocol.read_trains(tile, train, scoring)
            _scan(search, chunks, "pairs-" if again is None else "again-")
            best = search.result()
            self._proven[:, rows] = np.maximum(
                self._proven[:, rows], thresholds.proven(best, floors.shape[1], scoring.k)
            )
            if again is not None:
                best = best.of_rows(again.rows)
            block = protocol.block(tests, best, scoring)
            counters.add("bytes-shuffled", block.nbytes)
            return block

    def _keep_block(
        self,
        tile: Tile,
        test: FeatureSet,
        train: FeatureSet,
        protocol: ScoringProtocol[Any],
        scoring: Scoring,
    ) -> None:
        """Reads a tile's test block, unless it is that of the tile before."""
        sets = ((one.directory, one.manifest.fingerprint) for one in (test, train))
        key = (*sets, tile.tests, protocol, scoring)
        if self._key != key:
            self._key = self._tests = None  # before another block takes its memory
            self._tests = protocol.read_tests(tile, test, scoring)
            self._proven = np.zeros((2, len(self._tests)))
            self._key = key


def _scan(search: Search[Any], chunks: Iterator[Any], prefix: str) -> None:
    """Searches chunks, each of which is read while the one before is searched, and counts pairs."""
    ahead = prefetch(chunks, depth=1)
    with contextlib.closing(ahead):
        for chunk in ahead:
            for pairs in search.scan(chunk):
                counters.add("pairs-scored", pairs)
    for name, count in search.counts.items():
        counters.add("pairs-scored-exactly" if name == "scored" else f"{prefix}{name}", count)


@functools.cache
def process_scorer() -> TileScorer:
    """Returns the scorer of all threads of a process.

    A multiplication uses all cores, and the memory budget is of one tile and one test block.
    """
    return TileScorer()


def score_tile(
    tile: Tile,
    test: FeatureSet,
    train: FeatureSet,
    config: ScoringConfig,
    estimates: Mapping[int, np.ndarray] | None = None,
    again: Again | None = None,
) -> tuple[int, ScoredBlock]:
    """Scores a tile: (test_start, ScoredBlock); `estimates` are thresholds by test_start."""
    protocol, scoring = protocol_of(config), scoring_of(config, train.manifest)
    own = estimates.get(tile.test_start) if estimates else None
    block = process_scorer().score(tile, test, train, protocol, scoring, own, again)
    return tile.test_start, block


def score_again(
    item: tuple[Tile, Again], test: FeatureSet, train: FeatureSet, config: ScoringConfig
) -> tuple[int, ScoredBlock]:
    """Scores a tile for some of its test examples: (test_start, ScoredBlock)."""
    tile, again = item
    return score_tile(tile, test, train, config, again=again)


class _CheckDoFn(beam.DoFn):
    """Finds the test examples of a merged block that were searched by too high an estimate:
    (test_start, ScoredBlock) → the same.

    A block without them passes. Otherwise its proven part goes to `_IN_PART`, and the others,
    (test_start, Again), to `_AGAIN`.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def process(
        self,
        merged: tuple[int, ScoredBlock],
        estimates: Mapping[int, np.ndarray],
        train: FeatureSet,
    ) -> Iterator[tuple[int, ScoredBlock] | beam.pvalue.TaggedOutput]:
        start, block = merged
        n = len(block.test_ids)
        rows = (
            thresholds.unproven(block.best, n, self._k, estimates[start])
            if start in estimates
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
class PlanTiles(beam.PTransform):
    """Plans the tiles of two feature sets: (test, train) FeatureSet (one each) → Tile.

    Attributes:
        config: how examples are scored.
        processes: see `ScoreInfluence`.
    """

    config: ScoringConfig
    processes: int | None = 1

    def expand(self, sets: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        test, train = map(beam.pvalue.AsSingleton, sets)
        args = self.config, self.processes
        if not protocol_of(self.config).sums_positions:
            return sets[0] | "CutTiles" >> beam.FlatMap(plan_tiles, train, *args)  # Tile
        counted = (
            sets[0]
            | "ListTestFiles" >> beam.FlatMap(lambda test: range(len(test.counts)))  # file
            | "SpreadTestFiles" >> beam.Reshuffle()  # file
            | "CountPositions"
            >> beam.Map(count_positions, test, self.config)  # (file, [n] positions)
        )
        return (
            # Not from the set itself: a runner that fused this with what reads the set would wait
            # for the counts before it makes them.
            sets[0].pipeline
            | "StartPlanning" >> beam.Create([None])
            | "CutTiles"
            >> beam.FlatMap(
                lambda _, *planned: plan_tiles(*planned),
                test,
                train,
                *args,
                beam.pvalue.AsList(counted),
            )  # Tile
        )


@dataclasses.dataclass
class ScoreInfluence(beam.PTransform):
    """Finds each test example's k strongest proponents and opponents: (test, train) FeatureSet (one
    each) → (row of the block's first test example, ScoredBlock).

    Attributes:
        config: how examples are scored.
        processes: number of worker processes that share a machine's memory, or None for one per
            processor.
    """

    config: ScoringConfig
    processes: int | None = 1

    def expand(self, sets: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        test, train = sets
        sides = beam.pvalue.AsSingleton(test), beam.pvalue.AsSingleton(train)
        tiles = sets | "PlanTiles" >> PlanTiles(self.config, self.processes)  # Tile
        if protocol_of(self.config).estimates_thresholds:
            return self._score_by_estimates(tiles, sides)  # (test_start, ScoredBlock)
        return (
            tiles
            | "SpreadTiles" >> beam.Reshuffle()  # Tile
            | "ScoreTiles" >> beam.Map(score_tile, *sides, self.config)  # (test_start, ScoredBlock)
            | "MergeTopK"
            >> beam.CombinePerKey(MergeTopK(self.config.k))  # (test_start, ScoredBlock)
        )

    def _score_by_estimates(
        self, tiles: beam.PCollection, sides: tuple[beam.pvalue.AsSingleton, ...]
    ) -> beam.PCollection:
        """Scores the first tile of each test block before the others, which begin with the
        thresholds that it lets estimate; searches again what was estimated too high.
        """
        first_blocks = (
            tiles
            | "TakeFirstTiles" >> beam.Filter(lambda tile: tile.train_start == 0)  # Tile
            | "SpreadFirstTiles" >> beam.Reshuffle()  # Tile
            | "ScoreFirstTiles"
            >> beam.Map(score_tile, *sides, self.config)  # (test_start, ScoredBlock)
        )
        estimates = beam.pvalue.AsDict(
            first_blocks
            | "EstimateThresholds"
            >> beam.FlatMap(
                estimate_thresholds, *sides, self.config, self.processes
            )  # (test_start, [2, n])
        )
        other_blocks = (
            tiles
            | "TakeOtherTiles" >> beam.Filter(lambda tile: tile.train_start > 0)  # Tile
            | "SpreadTiles" >> beam.Reshuffle()  # Tile
            | "ScoreTiles"
            >> beam.Map(score_tile, *sides, self.config, estimates)  # (test_start, ScoredBlock)
        )
        checked = (
            (first_blocks, other_blocks)
            | "JoinTiles" >> beam.Flatten()  # (test_start, ScoredBlock)
            | "MergeTopK"
            >> beam.CombinePerKey(MergeTopK(self.config.k))  # (test_start, ScoredBlock)
            | "CheckThresholds"
            >> beam.ParDo(_CheckDoFn(self.config.k), estimates, sides[1]).with_outputs(
                _IN_PART, _AGAIN, main=_WHOLE
            )
        )
        blocks = checked[_WHOLE], self._score_again(checked, sides)
        return blocks | "JoinBlocks" >> beam.Flatten()  # (test_start, ScoredBlock)

    def _score_again(
        self, checked: Any, sides: tuple[beam.pvalue.AsSingleton, ...]
    ) -> beam.PCollection:
        """Completes the blocks of which some test examples were searched by too high estimates."""
        blocks_again = (
            checked[_AGAIN]  # (test_start, Again)
            | "PlanAgain"
            >> beam.FlatMap(plan_again, *sides, self.config, self.processes)  # (Tile, Again)
            | "SpreadAgain" >> beam.Reshuffle()  # (Tile, Again)
            | "ScoreAgain"
            >> beam.Map(score_again, *sides, self.config)  # (test_start, ScoredBlock)
        )
        return (
            (checked[_IN_PART], blocks_again)
            | "JoinAgain" >> beam.Flatten()  # (test_start, ScoredBlock)
            | "MergeAgain"
            >> beam.CombinePerKey(MergeTopK(self.config.k))  # (test_start, ScoredBlock)
        )


def count_positions(file: int, test: FeatureSet, config: ScoringConfig) -> tuple[int, np.ndarray]:
    """Counts the positions of the examples of a test file: (file, [n] int64)."""
    return file, protocol_of(config).count_positions(file, test)


def estimate_thresholds(
    first: tuple[int, ScoredBlock],
    test: FeatureSet,
    train: FeatureSet,
    config: ScoringConfig,
    processes: int | None = 1,
) -> Iterator[tuple[int, np.ndarray]]:
    """Estimates a block's thresholds by its first tile, (test_start, ScoredBlock), if there are
    others: (test_start, [2, n]).
    """
    start, block = first
    trains, rows = sum(train.counts), grid_of(test, train, config, processes).train_rows
    if rows < trains:
        yield start, thresholds.estimated(block.best, len(block.test_ids), config.k, rows / trains)


def plan_again(
    block: tuple[int, Again],
    test: FeatureSet,
    train: FeatureSet,
    config: ScoringConfig,
    processes: int | None = 1,
) -> Iterator[tuple[Tile, Again]]:
    """Returns the tiles of a block, (test_start, Again), in which some test examples have to be
    searched once more.
    """
    start, again = block
    protocol, grid = protocol_of(config), grid_of(test, train, config, processes)
    for tile in protocol.tiles(grid, config.k, test, train, {}):
        if tile.test_start == start:
            yield tile, again
