"""Stage 2: from two feature sets to the k strongest proponents and opponents of each test example.

What travels is tiles and blocks of candidate arrays, never pairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms import counting, files, records, summed_tiles, tfrecords, thresholds, topk
from transforms.errors import InputError
from transforms.files import StoredFile
from transforms.manifest import BYTES_PER_FILE, FeatureManifest, check_same_model, usable_rates
from transforms.overlap import prefetch
from transforms.records import Features
from transforms.scoring import Scoring, self_influence
from transforms.search import Search
from transforms.tiles import Grid, Shape, Span, Tile, choose_grid, chunks, rows_per_file, tiles
from transforms.topk import TopK

# What part of a file's records may be read one by one, each by a seek, instead of the whole file.
_FEW = 1 / 16


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """A committed feature set: its directory and its manifest."""

    directory: str
    manifest: FeatureManifest

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of records of its files."""
        return tuple(file.count for file in self.manifest.files)

    @property
    def shape(self) -> Shape:
        """T, C and D of its records."""
        return Shape(len(self.manifest.checkpoints), self.manifest.outputs, self.manifest.units)

    def payloads(self, span: Span) -> list[bytes]:
        """Reads and verifies serialized records."""
        return tfrecords.split_frames(files.read_verified(self.directory, self.manifest.files[span.file]), span.start, span.stop)

    def decode(self, payloads: Sequence[bytes]) -> Features:
        """Parses serialized records."""
        shape, found = self.shape, self.manifest
        return records.decode(payloads, shape.checkpoints, shape.outputs, shape.units, found.integer_labels, found.feature_dtype)

    def read(self, spans: Sequence[Span]) -> Features:
        """Reads, verifies and parses records; `spans` holds at least one."""
        return Features.concatenate([self.decode(self.payloads(span)) for span in spans])

    def take(self, rows: np.ndarray) -> Features:
        """Reads, verifies and parses the records of some rows of the set, ascending, [m] integers: each file that holds some once.

        Of a file on this machine of which few are wanted, only these are read, and verified by their own checksums.

        Raises:
            InputError: what is read is not what was written.
        """
        borders = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        payloads: list[bytes] = []
        for file in np.unique(np.searchsorted(borders, rows, side="right") - 1).tolist():
            wanted = rows[(rows >= borders[file]) & (rows < borders[file + 1])] - borders[file]
            if len(wanted) < _FEW * self.counts[file] and files.is_local(self.directory):
                payloads += self._pick(self.manifest.files[file], wanted.tolist())
            else:
                first = int(wanted[0])
                found = self.payloads(Span(file, first, int(wanted[-1]) + 1))
                payloads += [found[row - first] for row in wanted.tolist()]
        return self.decode(payloads)

    def _pick(self, file: StoredFile, indices: Sequence[int]) -> list[bytes]:
        path = files.join(self.directory, file.name)
        try:
            with open(path, "rb") as stream:
                return tfrecords.pick_frames(stream, indices)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged or gone: {files.told(error)}; compute the set again") from error


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredBlock:
    """What is known of a block of test examples: what their rows tell of themselves, and their best candidates so far.

    Attributes:
        test_ids, labels, predictions, probabilities: [n, …] as in `records.Features`.
        label_probabilities: [n] float32, of the label at the last checkpoint.
        self_influence: [n] float64.
        best: the k strongest proponents and opponents.
    """

    test_ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    self_influence: np.ndarray
    best: TopK

    @staticmethod
    def of(tests: Features, best: TopK, scoring: Scoring) -> ScoredBlock:
        """Of test examples and what was found for them."""
        return ScoredBlock(
            tests.example_ids,
            tests.labels,
            tests.predictions,
            tests.probabilities,
            tests.label_probabilities[:, -1],
            self_influence(tests, scoring.learning_rates),
            best,
        )

    @property
    def nbytes(self) -> int:
        """Size of the arrays, which is nearly all that travels."""
        own = (self.test_ids, self.labels, self.predictions, self.probabilities, self.label_probabilities, self.self_influence)
        rankings = (self.best.proponents, self.best.opponents)
        return sum(array.nbytes for array in own) + sum(
            array.nbytes for one in rankings for array in (one.rows, one.scores, one.ids, one.labels)
        )


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
        sum_positions: whether scores are sums over the positions of examples, which records are of; see `summed_scores`.
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
        """Makes sure, before anything is computed, that the memory budget suffices; where workers share it, only they can tell.

        `largest` is the size of the largest feature file, as far as it is known; it counts where positions are summed.

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
                return summed_tiles.choose_grid(shape, tests, trains, self.k, memory_bytes, extra, self.test_rows, self.train_rows)
            return choose_grid(shape, tests, trains, self.k, memory_bytes, self.test_rows, self.train_rows)
        except ValueError as error:
            raise InputError(f"--memory_gb={self.memory_gb:g}: {error}") from error


def largest_file(*sets: FeatureManifest) -> int:
    """The size of the largest feature file of some sets."""
    return max((file.size for one in sets for file in one.files), default=0)


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
    counting.add("pairs-planned", sum(test.counts) * sum(train.counts))
    yield from planned


def plan_again(block: tuple[int, Again], test: FeatureSet, train: FeatureSet, plan: ScoringPlan) -> Iterator[tuple[Tile, Again]]:
    """The tiles of a block, (test_start, Again), some of whose test examples have to be searched once more."""
    start, again = block
    for tile in _tiles(test, train, plan):
        if tile.test_start == start:
            yield tile, again


def _tiles(test: FeatureSet, train: FeatureSet, plan: ScoringPlan) -> Iterator[Tile]:
    return tiles(plan.grid(test, train), test.counts, train.counts, rows_per_file(plan.k))


class TileScorer:
    """Scores tiles, one at a time; keeps the test block of the tile before and what is known of its thresholds: neighbours share both."""

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
        """The best candidates of a tile; of those that other tiles' scores prove not to be among the k best, none.

        Nor of those below `guesses` [2, n], thresholds of the block's test examples. `again` are those of them that alone are searched.
        """
        with self._lock:
            key = (test.directory, test.manifest.fingerprint, tile.tests, train.directory, train.manifest.fingerprint, scoring)
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
            self._proven[:, rows] = np.maximum(self._proven[:, rows], thresholds.proven(best, floors.shape[1], scoring.k))
            block = ScoredBlock.of(tests, best if again is None else best.of_rows(again.rows), scoring)
            counting.add("bytes-shuffled", block.nbytes)
            return block

    @staticmethod
    def _scan(searched: Search, tile: Tile, train: FeatureSet, counters: str) -> None:
        ahead = prefetch((train.read(spans) for spans in chunks(tile.trains, tile.chunk_rows)), depth=1)
        with contextlib.closing(ahead):
            for chunk in ahead:
                for pairs in searched.scan(chunk):
                    counting.add("pairs-scored", pairs)
        for name, count in searched.counts.items():
            counting.add("pairs-scored-exactly" if name == "scored" else f"{counters}{name}", count)


# One for all threads of a process: a multiplication uses all cores, and the memory budget is of one tile and one test block.
_scorer = TileScorer()


class _ScoreDoFn(beam.DoFn):
    def __init__(self, plan: ScoringPlan) -> None:
        self._plan = plan

    def process(
        self, tile: Tile, test: FeatureSet, train: FeatureSet, guesses: Mapping[int, np.ndarray] | None = None
    ) -> Iterator[tuple[int, ScoredBlock]]:
        scoring, own = self._plan.scoring(train.manifest), guesses.get(tile.test_start) if guesses else None
        yield tile.test_start, _scorer.score(tile, test, train, scoring, own)


class _ScoreAgainDoFn(beam.DoFn):
    def __init__(self, plan: ScoringPlan) -> None:
        self._plan = plan

    def process(self, element: tuple[Tile, Again], test: FeatureSet, train: FeatureSet) -> Iterator[tuple[int, ScoredBlock]]:
        tile, again = element
        yield tile.test_start, _scorer.score(tile, test, train, self._plan.scoring(train.manifest), again=again)


def guess_thresholds(
    first: tuple[int, ScoredBlock], test: FeatureSet, train: FeatureSet, plan: ScoringPlan
) -> Iterator[tuple[int, np.ndarray]]:
    """The thresholds that the first tile of a block, (test_start, ScoredBlock), lets guess, if there are others: (test_start, [2, n])."""
    start, block = first
    trains, rows = sum(train.counts), plan.grid(test, train).train_rows
    if rows < trains:
        yield start, thresholds.guessed(block.best, len(block.test_ids), plan.k, rows / trains)


class _CheckDoFn(beam.DoFn):
    """Sorts out the test examples of a merged block that were searched by too high a guess: (test_start, ScoredBlock) → the same.

    A block without them is passed on; else what is proven of it goes to `_IN_PART`, and the others, (test_start, Again), to `_AGAIN`.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def process(
        self, merged: tuple[int, ScoredBlock], guesses: Mapping[int, np.ndarray], train: FeatureSet
    ) -> Iterator[tuple[int, ScoredBlock] | beam.pvalue.TaggedOutput]:
        start, block = merged
        n = len(block.test_ids)
        rows = thresholds.unproven(block.best, n, self._k, guesses[start]) if start in guesses else np.empty(0, np.int64)
        if not len(rows):
            yield start, block
            return
        counting.add("pairs-planned", len(rows) * sum(train.counts))
        counting.add("tests-again", len(rows))
        again = Again(rows, thresholds.proven(block.best, n, self._k)[:, rows])
        yield beam.pvalue.TaggedOutput(_IN_PART, (start, dataclasses.replace(block, best=block.best.without(rows))))
        yield beam.pvalue.TaggedOutput(_AGAIN, (start, again))


class MergeTopK(beam.CombineFn):
    """Merges the scored blocks of the same test examples, by array operations: ScoredBlock → ScoredBlock, or another that has a `best`."""

    def __init__(self, k: int) -> None:
        self._k = k

    def create_accumulator(self) -> ScoredBlock | None:
        """Nothing is known yet."""
        return None

    def add_input(self, accumulator: ScoredBlock | None, block: ScoredBlock) -> ScoredBlock:
        """Merges one more block."""
        return block if accumulator is None else self._merge([accumulator, block])

    def merge_accumulators(self, accumulators: Iterable[ScoredBlock | None]) -> ScoredBlock | None:
        """Merges what several workers found."""
        known = [accumulator for accumulator in accumulators if accumulator is not None]
        return self._merge(known) if known else None

    def extract_output(self, accumulator: ScoredBlock | None) -> ScoredBlock | None:
        """The merged block."""
        return accumulator

    def _merge(self, blocks: Sequence[ScoredBlock]) -> ScoredBlock:
        return blocks[0] if len(blocks) == 1 else dataclasses.replace(blocks[0], best=topk.merge([block.best for block in blocks], self._k))


@dataclasses.dataclass
class ScoreInfluence(beam.PTransform):
    """Stage 2 up to the global top k: (test, train) feature sets → (row of the block's first test example, ScoredBlock).

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
            | "ScoreFirstTiles" >> beam.ParDo(_ScoreDoFn(self.plan), *both)  # (test_start, ScoredBlock)
        )
        guesses = beam.pvalue.AsDict(
            first_blocks | "GuessThresholds" >> beam.FlatMap(guess_thresholds, *both, self.plan)  # (test_start, [2, n])
        )
        other_blocks = (
            planned
            | "TakeOtherTiles" >> beam.Filter(lambda tile: tile.train_start > 0)  # Tile
            | "SpreadTiles" >> beam.Reshuffle()  # Tile
            | "ScoreTiles" >> beam.ParDo(_ScoreDoFn(self.plan), *both, guesses)  # (test_start, ScoredBlock)
        )
        checked = (
            (first_blocks, other_blocks)
            | "JoinTiles" >> beam.Flatten()  # (test_start, ScoredBlock)
            | "MergeTopK" >> beam.CombinePerKey(MergeTopK(self.plan.k))  # (test_start, ScoredBlock)
            | "CheckThresholds" >> beam.ParDo(_CheckDoFn(self.plan.k), guesses, both[1]).with_outputs(_IN_PART, _AGAIN, main=_WHOLE)
        )
        blocks_again = (
            checked[_AGAIN]  # (test_start, Again)
            | "PlanAgain" >> beam.FlatMap(plan_again, *both, self.plan)  # (Tile, Again)
            | "SpreadAgain" >> beam.Reshuffle()  # (Tile, Again)
            | "ScoreAgain" >> beam.ParDo(_ScoreAgainDoFn(self.plan), *both)  # (test_start, ScoredBlock)
        )
        mended = (
            (checked[_IN_PART], blocks_again)
            | "JoinAgain" >> beam.Flatten()  # (test_start, ScoredBlock)
            | "MergeAgain" >> beam.CombinePerKey(MergeTopK(self.plan.k))  # (test_start, ScoredBlock)
        )
        return (checked[_WHOLE], mended) | "JoinBlocks" >> beam.Flatten()  # (test_start, ScoredBlock)
