"""The scoring protocol: all that stage 2 has to know of the things that it scores.

Two implementations: `records.RecordScoring`, scores between records, and `sums.SumScoring`, scores
between examples whose records are positions. `plan.protocol_of` chooses one by the configuration;
nothing else tells them apart.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from transforms.core.shapes import Shape
from transforms.core.topk import TopK
from transforms.scoring.costs import Cost, FeatureFiles
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import Footprint, Grid, Tile
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest

_E = TypeVar("_E")


class Examples(Protocol):
    """Examples in memory, as arrays: `Features` or `Gradients`."""

    def __len__(self) -> int:
        """Returns their number."""

    def take(self: _E, rows: Any) -> _E:
        """Returns some of them: a slice, an index array or a mask."""


E = TypeVar("E", bound=Examples)
_Chunk = TypeVar("_Chunk", contravariant=True)


class Search(Protocol[_Chunk]):
    """The search for the k strongest of some test examples, among training examples in chunks.

    Attributes:
        counts: number of pairs by the way in which they were decided; `scored` counts those whose
            score was computed.
    """

    counts: dict[str, int]

    def scan(self, train: _Chunk) -> Iterator[int]:
        """Searches a chunk; yields numbers of pairs as they are done, which add up to all."""

    def result(self) -> TopK:
        """Returns the top k of all chunks; rows are those of the test examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredBlock(abc.ABC):
    """Test examples that are scored together, and their best candidates so far.

    Attributes:
        test_ids: [n] byte strings (dtype S), UTF-8.
        label_probabilities: [n] of their labels at the last checkpoint; NaN for a regression.
        self_influence: [n] float64.
        best: the k strongest proponents and opponents.
    """

    test_ids: np.ndarray
    label_probabilities: np.ndarray
    self_influence: np.ndarray
    best: TopK

    @abc.abstractmethod
    def columns(self, schema: pa.Schema) -> list[pa.Array]:
        """Returns the second to fourth column of the rows, by the protocol's schema."""

    @property
    def nbytes(self) -> int:
        """Size of the arrays, which is nearly all that travels."""
        own = [getattr(self, field.name) for field in dataclasses.fields(self)]
        for ranking in (self.best.proponents, self.best.opponents):
            own += [ranking.rows, ranking.scores, ranking.ids, ranking.labels]
        return sum(array.nbytes for array in own if isinstance(array, np.ndarray))


class ScoringProtocol(abc.ABC, Generic[E]):
    """What stage 2 calls, in this order: to plan tiles, to read and search them, to write rows.

    Implementations hold no data. They travel to workers within the configuration that names them.

    Attributes:
        sums_positions: whether records are positions of the examples that are scored. Then tiles
            can only be cut once the positions of each test example are counted, so a step of the
            graph calls `count_positions` for each test file.
        estimates_thresholds: whether the first tile of a test block lets thresholds of the others
            be estimated, so that it is scored before them. Without, each worker knows only the
            thresholds of the tiles that it scored itself.
        notes: sentences about the scores, for the report.
    """

    sums_positions: ClassVar[bool]
    estimates_thresholds: ClassVar[bool]
    notes: ClassVar[tuple[str, ...]] = ()

    # Plan: called by the command line before a run, and by the step that plans tiles.

    @abc.abstractmethod
    def check(self, manifest: FeatureManifest, directory: str) -> None:
        """Makes sure that a feature set holds what is scored; called before anything else.

        Raises:
            InputError: it does not.
        """

    @abc.abstractmethod
    def count(self, manifest: FeatureManifest) -> int:
        """Returns the number of examples that are scored of a feature set."""

    @abc.abstractmethod
    def footprint(self, shape: Shape, k: int, largest_file: int) -> Footprint:
        """Returns what examples of a shape take, for grids and costs; `largest_file` is the size
        of the sets' largest file in bytes.
        """

    @abc.abstractmethod
    def predict(
        self,
        grid: Grid,
        footprint: Footprint,
        counts: tuple[int, int],
        test_files: Sequence[FeatureFiles],
        train_files: Sequence[FeatureFiles],
    ) -> Cost:
        """Predicts what a grid costs, for `tracin plan`; `counts` are of test and training
        examples.
        """

    @abc.abstractmethod
    def count_positions(self, file: int, test: FeatureSet) -> np.ndarray:
        """Returns the numbers of positions of the examples of a test file, in order: [n] int64.

        Called where `sums_positions`, for each file.
        """

    @abc.abstractmethod
    def tiles(
        self, grid: Grid, k: int, test: FeatureSet, train: FeatureSet, positions: Mapping[int, Any]
    ) -> Iterator[Tile]:
        """Returns the tiles of two feature sets, once for each graph.

        `positions` are, by test file, those of `count_positions`, or empty.
        """

    # Read and search: called by `score.TileScorer` on a worker, for each tile.

    @abc.abstractmethod
    def read_tests(self, tile: Tile, test: FeatureSet, scoring: Scoring) -> E:
        """Reads a tile's test block, which is kept for the next tile of the same block."""

    @abc.abstractmethod
    def read_trains(self, tile: Tile, train: FeatureSet, scoring: Scoring) -> Iterator[E]:
        """Reads a tile's training range in chunks, each while the one before is searched."""

    @abc.abstractmethod
    def search(self, tests: E, scoring: Scoring, floors: np.ndarray) -> Search[E]:
        """Begins the search of a tile.

        `floors` [2, n] are scores, opponents' negated, below which nothing is looked for.
        """

    @abc.abstractmethod
    def block(self, tests: E, best: TopK, scoring: Scoring) -> ScoredBlock:
        """Returns what leaves a tile, once it is searched."""

    # Row: called by the command line for a table's schema, and by the step that writes rows.

    @abc.abstractmethod
    def schema(self, task: str, outputs: int) -> pa.Schema:
        """Returns the Parquet schema of rows, of models with this task and so many outputs."""


def row_schema(
    own: Sequence[tuple[str, pa.DataType]], candidate: tuple[str, pa.DataType]
) -> pa.Schema:
    """Returns a schema of influence rows.

    `own` are the second to fourth column; `candidate` is the field of proponents and opponents
    between their ids and scores.
    """
    candidates = pa.list_(
        pa.struct([("train_id", pa.string()), candidate, ("score", pa.float64())])
    )
    return pa.schema(
        [
            ("test_id", pa.string()),
            *own,
            ("self_influence", pa.float64()),
            ("proponents", candidates),
            ("opponents", candidates),
        ]
    )
