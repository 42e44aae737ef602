"""Scores between records, each of which is an example, or a position that stands for itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.core.features import Features
from transforms.core.shapes import Shape
from transforms.core.topk import TopK
from transforms.influence.protocol import ScoredBlock, ScoringProtocol, Search, row_schema
from transforms.scoring import costs, tiles
from transforms.scoring.costs import Cost, FeatureFiles
from transforms.scoring.influence import Scoring, self_influence
from transforms.scoring.search.exact_search import ExactSearch
from transforms.scoring.tiles import Footprint, Grid, Tile
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.tables.tabular import label_array, label_type


@dataclasses.dataclass(frozen=True, eq=False)
class RecordBlock(ScoredBlock):
    """A scored block of records.

    Attributes:
        labels, predictions: [n, L] and [n, P] as in `Features`.
        probabilities: [n] float32, of the last checkpoint's prediction.
    """

    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray

    @staticmethod
    def of(tests: Features, best: TopK, scoring: Scoring) -> RecordBlock:
        """Returns the block of test examples and their best candidates."""
        return RecordBlock(
            test_ids=tests.example_ids,
            label_probabilities=tests.label_probabilities[:, -1],
            self_influence=self_influence(tests, scoring.learning_rates),
            best=best,
            labels=tests.labels,
            predictions=tests.predictions,
            probabilities=tests.probabilities,
        )

    def columns(self, schema: pa.Schema) -> list[pa.Array]:
        """Returns labels, predictions and their probabilities."""
        label = schema.field("test_label").type
        probabilities = self.probabilities.astype(np.float64)
        return [
            label_array(self.labels, label),
            label_array(self.predictions, label),
            pa.array(probabilities, mask=np.isnan(probabilities)),
        ]


@dataclasses.dataclass(frozen=True)
class RecordScoring(ScoringProtocol[Features]):
    """Scores records against records, by the exact search."""

    sums_positions = False
    estimates_thresholds = True

    def check(self, manifest: FeatureManifest, directory: str) -> None:
        """Accepts every feature set."""

    def count(self, manifest: FeatureManifest) -> int:
        """Returns the number of records."""
        return manifest.examples

    def footprint(self, shape: Shape, k: int, largest_file: int) -> Footprint:
        """Returns the footprint of records, whatever the size of files."""
        return tiles.record_footprint(shape, k)

    def predict(
        self,
        grid: Grid,
        footprint: Footprint,
        counts: tuple[int, int],
        test_files: Sequence[FeatureFiles],
        train_files: Sequence[FeatureFiles],
    ) -> Cost:
        """Predicts the cost by the files alone, which hold `counts` records."""
        return costs.predict(grid, footprint, test_files, train_files)

    def count_positions(self, file: int, test: FeatureSet) -> np.ndarray:
        """Returns 1 for each record."""
        return np.ones(test.counts[file], np.int64)

    def tiles(
        self, grid: Grid, k: int, test: FeatureSet, train: FeatureSet, positions: Mapping[int, Any]
    ) -> Iterator[Tile]:
        """Cuts between any records."""
        return tiles.record_tiles(grid, test.counts, train.counts, tiles.rows_per_file(k))

    def read_tests(self, tile: Tile, test: FeatureSet, scoring: Scoring) -> Features:
        """Reads the block's records."""
        return test.read(tile.tests)

    def read_trains(self, tile: Tile, train: FeatureSet, scoring: Scoring) -> Iterator[Features]:
        """Reads the range's records, chunk by chunk."""
        return (train.read(spans) for spans in tiles.chunks(tile.trains, tile.chunk_rows))

    def search(self, tests: Features, scoring: Scoring, floors: np.ndarray) -> Search[Features]:
        """Begins an exact search by bounds."""
        return ExactSearch(tests, scoring, floors=floors)

    def block(self, tests: Features, best: TopK, scoring: Scoring) -> RecordBlock:
        """Returns labels, predictions and probabilities with the best candidates."""
        return RecordBlock.of(tests, best, scoring)

    def schema(self, task: str, outputs: int) -> pa.Schema:
        """Returns the schema with labels and predictions of the task."""
        label = label_type(task, outputs)
        own = [
            ("test_label", label),
            ("test_prediction", label),
            ("test_probability", pa.float64()),
        ]
        return row_schema(own, ("train_label", label))
