"""The search by an index for each test example's strongest training examples.

An index answers approximately: it chooses the candidates. Their scores are exact: they are computed
from the stored features as `ScoreInfluence` computes them, and the best candidates are kept.
`recall` measures on a sample of test examples which part of the exact answer an index finds.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core import topk
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.topk import Ranking, TopK
from transforms.influence.protocol import ScoredBlock
from transforms.influence.records import RecordBlock
from transforms.influence.score import MergeTopK
from transforms.runtime import counters
from transforms.scoring import tiles
from transforms.scoring.influence import Scoring
from transforms.scoring.search.layout import score_pairs
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.feature_set_checks import check_same_model
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.vectors import faiss_index
from transforms.vectors.config import SearchConfig
from transforms.vectors.files import PROJECTION_FILE, plan_shards, read_projection
from transforms.vectors.projections.projection import Projection

# Bytes of the vectors and candidates of a test block, and of the features that candidates are
# scored with: two of each are little beside a worker's memory, most of which is for the index.
_BLOCK_BYTES = _FEATURE_BYTES = 192 << 20
# Bytes of a candidate in a block, about: its row, score, id and label.
_CANDIDATE_BYTES = 40
# The kinds of index that each setting of effort is for.
_EFFORT_KINDS = {"nprobe": ("auto", "ivf"), "ef_search": ("hnsw",)}


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """A search that has been checked.

    Attributes:
        config: the settings of the search.
        manifest: the manifest of the index.
        test_fingerprint: fingerprint of the test set.
        sample: number of test examples that are also searched exactly.
    """

    config: SearchConfig
    manifest: Manifest
    test_fingerprint: str
    sample: int

    @staticmethod
    def of(config: SearchConfig, test: FeatureSet, train: FeatureSet) -> SearchPlan:
        """Plans a search, after checking that the index and both feature sets fit.

        Raises:
            InputError: FAISS is missing; the index is none, or of another training set; the sets
                are of different models; a setting is for another kind of index; or an id is not in
                the test set.
        """
        faiss_index.require()
        manifest = manifests.read_kind(config.index, "index", "index")
        check_same_model(test.manifest, train.manifest, test.directory, train.directory)
        if manifest.settings["train_features"] != train.manifest.fingerprint:
            raise InputError(
                f"`index={config.index!r}` was built from another feature set than "
                f"`train_features={train.directory!r}`: name the one that it was built from, or "
                "build it anew with `tracin index`"
            )
        _check_effort(config, manifest.settings["kind"])
        if config.test_ids:
            find_rows(test, config.test_ids)
        sample = min(config.recall_sample, len(config.test_ids) or test.manifest.examples)
        return SearchPlan(config, manifest, test.manifest.fingerprint, sample)

    @property
    def scoring(self) -> Scoring:
        """k, and the learning rates and the normalisation of the index."""
        settings = self.manifest.settings
        return Scoring(tuple(settings["learning_rates"]), self.config.k, settings["normalize"])

    @property
    def candidates(self) -> int:
        """Number of candidates of each sign that an index is asked for."""
        return self.config.k * self.config.oversampling

    @property
    def settings(self) -> dict[str, Any]:
        """The identity of the result, for a manifest."""
        settings, config = self.manifest.settings, self.config
        return {
            "index": self.manifest.fingerprint,
            "test_features": self.test_fingerprint,
            "train_features": settings["train_features"],
            "learning_rates": settings["learning_rates"],
            "normalize": settings["normalize"],
            "k": config.k,
            "oversampling": config.oversampling,
            "nprobe": config.nprobe,
            "ef_search": config.ef_search,
            "test_ids": list(config.test_ids),
            "recall_sample": config.recall_sample,
        }


def _check_effort(config: SearchConfig, kind: str) -> None:
    """Checks that the settings of a search's effort are for an index of this kind.

    Raises:
        InputError: one is for another kind.
    """
    for field, kinds in _EFFORT_KINDS.items():
        if getattr(config, field) and kind not in kinds:
            raise InputError(
                f"`{field}` is for indexes of `kind={kinds[-1]}`, and `index={config.index!r}` is "
                f"of {kind}: leave it out"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class TestBlock:
    """Test examples that are searched for together.

    Attributes:
        start: row of the first in the result.
        rows: their rows in the test set, ascending, [n] int64.
    """

    __test__ = False  # not a test, whatever its name says to pytest
    start: int
    rows: np.ndarray


def plan_blocks(test: FeatureSet, plan: SearchPlan) -> Iterator[TestBlock]:
    """Plans the blocks of the test examples to search for, in the test set's order.

    Raises:
        InputError: an id is not in the test set.
    """
    test_ids = plan.config.test_ids
    rows = find_rows(test, test_ids) if test_ids else np.arange(test.manifest.examples)
    shape, file_rows = test.shape, tiles.rows_per_file(plan.config.k)
    most = _BLOCK_BYTES // (
        shape.record_bytes
        + 8 * plan.manifest.counts["dimensions"]
        + _CANDIDATE_BYTES * plan.candidates
    )
    for first in range(0, len(rows), file_rows):
        stop = min(first + file_rows, len(rows))
        step = -(-(stop - first) // -(-(stop - first) // max(1, most)))
        for start in range(first, stop, step):
            yield TestBlock(start, rows[start : min(start + step, stop)])


def find_rows(feature_set: FeatureSet, ids: Sequence[str]) -> np.ndarray:
    """Finds the rows of a set's examples with these ids, ascending.

    Raises:
        InputError: some id is not there.
    """
    left = {example_id.encode() for example_id in ids}
    rows: list[int] = []
    for shard in plan_shards(feature_set, tiles.rows_per_file(1)):
        in_shard = feature_set.read(shard.spans).example_ids.tolist()
        rows += [shard.start + i for i, name in enumerate(in_shard) if name in left]
        left -= set(in_shard)
        if not left:
            break
    if left:
        missing = sorted(example_id.decode() for example_id in left)
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"`test_ids`: {', '.join(map(repr, missing[:3]))}{more} not in "
            f"{feature_set.directory}: give ids of its examples"
        )
    return np.array(rows, np.int64)


def plan_index_files(plan: SearchPlan) -> list[tuple[int, StoredFile]]:
    """Returns the index files, each with the row of its first vector."""
    files, start = [], 0
    for file in plan.manifest.files:
        if file.name != PROJECTION_FILE:
            files.append((start, file))
            start += file.count
    return files


def pair_with_indexes(
    block: TestBlock, plan: SearchPlan
) -> Iterator[tuple[TestBlock, tuple[int, StoredFile]]]:
    """Pairs a test block with each index file, and the row of the file's first vector."""
    for start, file in plan_index_files(plan):
        counters.add("tests-planned", len(block.rows))
        yield block, (start, file)


class IndexSearcher:
    """A searcher of index files for the candidates of test blocks, one at a time; it keeps the last
    projection, index and test block in memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Any, Any]] = {}

    def _get(self, name: str, key: Any, make: Callable[[], Any]) -> Any:
        if self._kept.get(name, (None,))[0] != key:
            self._kept.pop(name, None)  # before another takes its memory
            self._kept[name] = (key, make())
        return self._kept[name][1]

    def search(
        self,
        block: TestBlock,
        start: int,
        file: StoredFile,
        test: FeatureSet,
        train: FeatureSet,
        plan: SearchPlan,
    ) -> ScoredBlock:
        """Returns the best of an index file's candidates for a test block, scored exactly."""
        directory, config = plan.config.index, plan.config
        with self._lock:
            identity = (directory, plan.manifest.fingerprint)
            projection: Projection = self._get(
                "projection", identity, lambda: read_projection(directory, plan.manifest)
            )
            index = self._get(
                "index",
                (*identity, file.name),
                lambda: faiss_index.of_bytes(filesystems.read_verified(directory, file)),
            )
            key = (test.directory, test.manifest.fingerprint, block.start, len(block.rows))
            tests: Features = self._get("tests", (*identity, *key), lambda: test.take(block.rows))
            vectors = projection.project(tests)
            near = faiss_index.nearest(
                index, vectors, plan.candidates, config.nprobe, config.ef_search
            )
            candidates = np.where(near < 0, -1, near + start)
            best = score_candidates(tests, candidates, train, plan.scoring)
            counters.add("tests-searched", len(tests))
            return RecordBlock.of(tests, best, plan.scoring)


def score_candidates(
    tests: Features, candidates: np.ndarray, train: FeatureSet, scoring: Scoring
) -> TopK:
    """Returns the k best of candidates by their exact scores.

    `candidates` [2, n, m] are rows of the training set, for proponents and opponents of each test
    example; −1 for none.
    """
    distinct = np.unique(candidates)
    distinct = distinct[distinct >= 0]
    step = max(1, _FEATURE_BYTES // train.shape.record_bytes)
    parts = [TopK(_none(tests), _none(tests))]
    for first in range(0, len(distinct), step):
        rows = distinct[first : first + step]
        features = train.take(rows)
        rankings = [
            _rank(tests, features, rows, of_sign, sign, scoring)
            for sign, of_sign in zip((1, -1), candidates, strict=True)
        ]
        parts.append(TopK(*rankings))
    return topk.merge(parts, scoring.k)


def _rank(
    tests: Features,
    features: Features,
    rows: np.ndarray,
    candidates: np.ndarray,
    sign: int,
    scoring: Scoring,
) -> Ranking:
    """Returns the candidates [n, m] of one sign that are among `rows`, whose features are given,
    and whose exact score has this sign.
    """
    tests_of_pairs, columns = np.nonzero((candidates >= rows[0]) & (candidates <= rows[-1]))
    trains_of_pairs = np.searchsorted(rows, candidates[tests_of_pairs, columns])
    scores = score_pairs(tests, features, tests_of_pairs, trains_of_pairs, scoring)
    counters.add("pairs-scored-exactly", len(scores))
    of_sign = sign * scores > 0
    chosen = trains_of_pairs[of_sign]
    return Ranking(
        tests_of_pairs[of_sign].astype(np.int32),
        scores[of_sign],
        features.example_ids[chosen],
        features.labels[chosen],
    )


def _none(tests: Features) -> Ranking:
    return Ranking(np.zeros(0, np.int32), np.zeros(0), tests.example_ids[:0], tests.labels[:0])


# One for all threads of a process: a search uses all cores, and memory is for one index.
_searcher = IndexSearcher()


def search_block(
    item: tuple[TestBlock, tuple[int, StoredFile]],
    test: FeatureSet,
    train: FeatureSet,
    plan: SearchPlan,
) -> tuple[int, ScoredBlock]:
    """Searches an index file for a test block: (row of the block's first, ScoredBlock)."""
    block, (start, file) = item
    return block.start, _searcher.search(block, start, file, test, train, plan)


@dataclasses.dataclass
class SearchIndex(beam.PTransform):
    """Searches an index for each test example's strongest training examples: (test, train)
    FeatureSet (one each) → (row, ScoredBlock).

        test, train = read_feature_set(test_directory), read_feature_set(train_directory)
        plan = SearchPlan.of(SearchConfig(index, k=10), test, train)
        tests = pipeline | "ReadTest" >> ReadFeatureSet(test_directory)
        trains = pipeline | "ReadTrain" >> ReadFeatureSet(train_directory)
        rows = (tests, trains) | SearchIndex(plan)

    Attributes:
        plan: the search, checked against the same sets.
    """

    plan: SearchPlan

    def expand(self, sources: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        test, train = sources
        return (
            test
            | "PlanBlocks" >> beam.FlatMap(plan_blocks, self.plan)  # TestBlock
            | "PairWithIndexes"
            >> beam.FlatMap(pair_with_indexes, self.plan)  # (TestBlock, (start, StoredFile))
            | "SpreadBlocks" >> beam.Reshuffle()  # (TestBlock, (start, StoredFile))
            | "SearchBlocks"
            >> beam.Map(
                search_block,
                beam.pvalue.AsSingleton(test),
                beam.pvalue.AsSingleton(train),
                self.plan,
            )  # (row, ScoredBlock)
            | "MergeTopK" >> beam.CombinePerKey(MergeTopK(self.plan.config.k))  # (row, ScoredBlock)
        )
