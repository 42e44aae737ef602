"""Stage 2 of sets whose records are positions of examples, scores being summed: the k strongest
proponents and opponents of each example.

What travels is tiles and blocks of candidate arrays, as in `scores`, and before them how many
positions each test example has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.core.ids import example_of
from transforms.core.shapes import Span
from transforms.influence.blocks import MergeTopK, SummedBlock
from transforms.influence.plan import ScoringPlan
from transforms.runtime import counters
from transforms.runtime.prefetch import prefetch
from transforms.scoring import summed_tiles
from transforms.scoring.gradient_search import GradientSearch
from transforms.scoring.gradients import Gradients, Summing
from transforms.scoring.influence import Scoring
from transforms.scoring.summed_tiles import SummedTile
from transforms.scoring.tiles import rows_per_file
from transforms.storage import feature_record
from transforms.storage.feature_manifest import check_positions, check_same_model
from transforms.storage.feature_set import FeatureSet

# Memory of the records that are parsed at once: a file whose example has very many positions is
# added up in pieces.
_PIECE_BYTES = 16 << 20


def count_positions(file: int, found: FeatureSet) -> np.ndarray:
    """The numbers of positions of the examples of a feature file, in order: [n] int64."""
    ids = feature_record.example_ids(found.payloads(Span(file, 0, found.counts[file])))
    return np.array(
        [sum(1 for _ in group) for _, group in itertools.groupby(map(example_of, ids))], np.int64
    )


def read_gradients(
    found: FeatureSet, spans: Iterable[Span], learning_rates: tuple[float, ...], rows: int
) -> Iterator[Gradients]:
    """The gradients of the examples whose records are here, at most `rows` at a time, in order."""
    summing = Summing(learning_rates, rows)
    step = max(1, _PIECE_BYTES // found.shape.record_bytes)
    for span in spans:
        payloads = found.payloads(span)
        for start in range(0, len(payloads), step):
            yield from summing.add(found.decode(payloads[start : start + step]))
    last = summing.rest()
    if len(last):
        yield last


def plan_summed_tiles(
    test: FeatureSet,
    train: FeatureSet,
    counted: Sequence[tuple[int, np.ndarray]],
    plan: ScoringPlan,
) -> Iterator[SummedTile]:
    """The tiles of two feature sets, as logged; `counted` are the positions of the examples of each
    test file.

    Raises:
        InputError: the sets do not fit each other or the plan, or the training set is empty.
    """
    check_same_model(test.manifest, train.manifest, test.directory, train.directory)
    for one in (test, train):
        check_positions(one.manifest, one.directory)
    plan.scoring(train.manifest)
    if not sum(train.counts):
        raise InputError(f"{train.directory} holds no example: there is nothing to score against")
    grid = plan.grid(test, train)
    positions = [one for _, one in sorted(counted, key=lambda pair: pair[0])]
    tests, trains = sum(map(len, positions)), train.manifest.counts["examples"]
    planned = list(summed_tiles.tiles(grid, positions, train.counts, trains, rows_per_file(plan.k)))
    logging.getLogger(__name__).info(
        "%d test x %d train examples: %d tiles of %d x %d",
        tests,
        trains,
        len(planned),
        grid.test_rows,
        grid.train_rows,
    )
    counters.add("pairs-planned", tests * trains)
    yield from planned


class SumScorer:
    """Scores tiles, one at a time; keeps the test block of the tile before and what is known of its
    thresholds: neighbours share both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[Any, ...] | None = None
        self._tests: Gradients | None = None
        self._floors: np.ndarray | None = None

    def score(
        self, tile: SummedTile, test: FeatureSet, train: FeatureSet, scoring: Scoring
    ) -> SummedBlock:
        """The best candidates of a tile; of those that other tiles' scores prove not to be among
        the k best, none.
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
            if self._tests is None or self._key != key:
                self._tests = self._floors = None
                (self._tests,) = read_gradients(
                    test, tile.tests, scoring.learning_rates, tile.test_rows
                )
                self._key = key
            tests = self._tests
            search = GradientSearch(tests, scoring, self._floors)
            ahead = prefetch(
                read_gradients(train, tile.trains, scoring.learning_rates, tile.chunk_rows), depth=1
            )
            with contextlib.closing(ahead):
                for chunk in ahead:
                    search.scan(chunk)
                    counters.add("pairs-scored", len(tests) * len(chunk))
            for name, count in search.counts.items():
                counters.add("pairs-scored-exactly" if name == "scored" else f"pairs-{name}", count)
            self._floors = search.floors
            own = (
                tests.example_ids,
                tests.positions,
                tests.wrong,
                tests.label_probabilities,
                tests.self_influence,
            )
            block = SummedBlock(*own, search.result())
            counters.add("bytes-shuffled", block.nbytes)
            return block


# One for all threads of a process: a multiplication uses all cores, and the memory budget is of one
# tile and one test block.
_scorer = SumScorer()


class _ScoreDoFn(beam.DoFn):
    def __init__(self, plan: ScoringPlan) -> None:
        self._plan = plan

    def process(
        self, tile: SummedTile, test: FeatureSet, train: FeatureSet
    ) -> Iterator[tuple[int, SummedBlock]]:
        yield tile.test_start, _scorer.score(tile, test, train, self._plan.scoring(train.manifest))


@dataclasses.dataclass
class ScoreSums(beam.PTransform):
    """Stage 2 up to the global top k: (test, train) feature sets → (row of the block's first test
    example, SummedBlock).

    Attributes:
        plan: what is asked for.
    """

    plan: ScoringPlan

    def _list(self, found: FeatureSet) -> Iterator[int]:
        yield from range(len(found.counts))

    def _count(self, file: int, found: FeatureSet) -> tuple[int, np.ndarray]:
        return file, count_positions(file, found)

    def _plan(
        self,
        _: None,
        test: FeatureSet,
        train: FeatureSet,
        counted: Sequence[tuple[int, np.ndarray]],
    ) -> Iterator[SummedTile]:
        yield from plan_summed_tiles(test, train, counted, self.plan)

    def expand(self, sets: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        test, train = (
            beam.pvalue.AsSingleton(one) for one in sets
        )  # FeatureSet (one), FeatureSet (one)
        counted = (
            sets[0]
            | "ListTestFiles" >> beam.FlatMap(self._list)  # file
            | "SpreadTestFiles" >> beam.Reshuffle()  # file
            | "CountPositions"
            >> beam.Map(self._count, test)  # (file, [n] positions of its examples)
        )
        return (
            # Not from the set itself: a runner that fused this with what reads the set would wait
            # for the counts before it makes them.
            sets[0].pipeline
            | "StartPlanning" >> beam.Create([None])
            | "PlanTiles"
            >> beam.FlatMap(self._plan, test, train, beam.pvalue.AsList(counted))  # SummedTile
            | "SpreadTiles" >> beam.Reshuffle()  # SummedTile
            | "ScoreTiles"
            >> beam.ParDo(_ScoreDoFn(self.plan), test, train)  # (test_start, SummedBlock)
            | "MergeTopK" >> beam.CombinePerKey(MergeTopK(self.plan.k))  # (test_start, SummedBlock)
        )
