"""Scores between examples whose records are positions: sums over all pairs of their positions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.core.ids import example_of
from transforms.core.shapes import Shape, Span
from transforms.core.topk import TopK
from transforms.influence.protocol import ScoredBlock, ScoringProtocol, Search, row_schema
from transforms.scoring import costs, tiles
from transforms.scoring.costs import Cost, FeatureFiles
from transforms.scoring.gradients import UNKNOWN, Gradients, Summing
from transforms.scoring.influence import Scoring
from transforms.scoring.search.gradient_search import GradientSearch
from transforms.scoring.tiles import Footprint, Grid, Tile
from transforms.storage.feature_set import FeatureSet
from transforms.storage.feature_set_checks import BYTES_PER_FILE, check_positions
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record

# Memory of the records that are parsed at once: a file whose example has very many positions is
# added up in pieces.
_PIECE_BYTES = 16 << 20


def read_gradients(
    feature_set: FeatureSet,
    spans: Iterable[Span],
    learning_rates: tuple[float, ...],
    rows: int,
    piece_bytes: int = _PIECE_BYTES,
) -> Iterator[Gradients]:
    """Reads the gradients of the examples whose records are in `spans`, at most `rows` at a time,
    in order.

    Records are parsed in pieces of at most `piece_bytes`, whatever examples they are of.
    """
    summing = Summing(learning_rates, rows)
    step = max(1, piece_bytes // feature_set.shape.record_bytes)
    for span in spans:
        payloads = feature_set.payloads(span)
        for start in range(0, len(payloads), step):
            yield from summing.add(feature_set.decode(payloads[start : start + step]))
    last = summing.rest()
    if len(last):
        yield last


@dataclasses.dataclass(frozen=True, eq=False)
class SumBlock(ScoredBlock):
    """A scored block of examples whose records are positions; the label of a candidate is its
    number of positions.

    Attributes:
        positions, wrong: [n] int64 as in `Gradients`.
    """

    positions: np.ndarray
    wrong: np.ndarray

    def columns(self, schema: pa.Schema) -> list[pa.Array]:
        """Returns numbers of positions and of wrong ones, and the mean probability of labels."""
        return [
            pa.array(self.positions),
            pa.array(self.wrong, mask=self.wrong == UNKNOWN),
            pa.array(self.label_probabilities, mask=np.isnan(self.label_probabilities)),
        ]


@dataclasses.dataclass(frozen=True)
class SumScoring(ScoringProtocol[Gradients]):
    """Scores examples against examples, by their whole gradients.

    Thresholds are not estimated between workers: each knows those of the tiles that it scored.
    """

    sums_positions = True
    estimates_thresholds = False
    notes = (
        "Scores are sums over all pairs of positions of two examples; the probability of labels "
        "is a mean over positions.",
    )

    def check(self, manifest: FeatureManifest, directory: str) -> None:
        """Makes sure that records are positions.

        Raises:
            InputError: they are examples.
        """
        check_positions(manifest, directory)

    def count(self, manifest: FeatureManifest) -> int:
        """Returns the number of examples that the records are positions of."""
        return manifest.counts["examples"]

    def footprint(self, shape: Shape, k: int, largest_file: int) -> Footprint:
        """Returns the footprint of whole gradients; one example may fill a file."""
        return tiles.gradient_footprint(shape, k, largest_file, BYTES_PER_FILE)

    def predict(
        self,
        grid: Grid,
        footprint: Footprint,
        counts: tuple[int, int],
        test_files: Sequence[FeatureFiles],
        train_files: Sequence[FeatureFiles],
    ) -> Cost:
        """Predicts the cost by the numbers of examples and the files of their positions."""
        return costs.predict_summed(grid, footprint, *counts, test_files, train_files)

    def count_positions(self, file: int, test: FeatureSet) -> np.ndarray:
        """Counts the records of each example, which follow each other in a file."""
        ids = feature_record.example_ids(test.payloads(Span(file, 0, test.counts[file])))
        groups = itertools.groupby(map(example_of, ids))
        return np.array([sum(1 for _ in group) for _, group in groups], np.int64)

    def tiles(
        self, grid: Grid, k: int, test: FeatureSet, train: FeatureSet, positions: Mapping[int, Any]
    ) -> Iterator[Tile]:
        """Cuts between examples: test blocks by the counted positions, training ranges by files."""
        counted = [positions[file] for file in sorted(positions)]
        examples = self.count(train.manifest)
        return tiles.position_tiles(grid, counted, train.counts, examples, tiles.rows_per_file(k))

    def read_tests(self, tile: Tile, test: FeatureSet, scoring: Scoring) -> Gradients:
        """Adds up the gradients of the block."""
        rates = scoring.learning_rates
        (block,) = read_gradients(test, tile.tests, rates, tile.test_rows)
        return block

    def read_trains(self, tile: Tile, train: FeatureSet, scoring: Scoring) -> Iterator[Gradients]:
        """Adds up the gradients of the range, chunk by chunk."""
        return read_gradients(train, tile.trains, scoring.learning_rates, tile.chunk_rows)

    def search(self, tests: Gradients, scoring: Scoring, floors: np.ndarray) -> Search[Gradients]:
        """Begins a search by products of whole gradients."""
        return GradientSearch(tests, scoring, floors)

    def block(self, tests: Gradients, best: TopK, scoring: Scoring) -> SumBlock:
        """Returns numbers of positions with the best candidates."""
        return SumBlock(
            test_ids=tests.example_ids,
            label_probabilities=tests.label_probabilities,
            self_influence=tests.self_influence,
            best=best,
            positions=tests.positions,
            wrong=tests.wrong,
        )

    def schema(self, task: str, outputs: int) -> pa.Schema:
        """Returns the schema with numbers of positions, the same for all tasks."""
        own = [
            ("test_positions", pa.int64()),
            ("test_wrong_positions", pa.int64()),
            ("test_label_probability", pa.float64()),
        ]
        return row_schema(own, ("train_positions", pa.int64()))
