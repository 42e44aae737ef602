"""Indexes over the vectors of a training set, a file for each range of its rows, and the search by
them for candidates to score.

An index answers approximately: which candidates it gives is its choice. What becomes of them is
exact: they are scored from the stored features as `tracin score` would, and the best are kept. What
was missed a sample tells, for which the exact answer is computed too.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core import topk
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.topk import Ranking, TopK
from transforms.influence.blocks import MergeTopK, ScoredBlock
from transforms.runtime import counters
from transforms.scoring import exact_search, tiles
from transforms.scoring.influence import Scoring
from transforms.storage import filesystems
from transforms.storage.feature_set import FeatureSet
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.vectors import faiss_index
from transforms.vectors.files import PROJECTION_FILE, plan_shards, read_projection
from transforms.vectors.projections import Projection

# What the vectors and candidates of a block of test examples may take, and the features that
# candidates are scored with.
_BLOCK_BYTES = _FEATURE_BYTES = 192 << 20


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """What a search is asked for.

    Attributes:
        index: the index's directory.
        found: its manifest.
        scoring: k, the learning rates and the normalisation, which are those of the index.
        oversampling: candidates of each sign, over k.
        nprobe, ef_search: see `faiss_index.nearest`.
        test_ids: the test examples to explain, or empty for all.
        sample: for how many of them the exact answer is computed, to tell what was missed.
    """

    index: str
    found: Manifest
    scoring: Scoring
    oversampling: int
    nprobe: int | None
    ef_search: int | None
    test_ids: tuple[str, ...]
    sample: int

    @property
    def candidates(self) -> int:
        """How many candidates of each sign an index is asked for."""
        return self.scoring.k * self.oversampling


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
    """The blocks of the test examples that are asked for, in the test set's order.

    Raises:
        InputError: an id is not in the test set.
    """
    rows = find_rows(test, plan.test_ids) if plan.test_ids else np.arange(test.manifest.examples)
    shape, file_rows = test.shape, tiles.rows_per_file(plan.scoring.k)
    most = _BLOCK_BYTES // (
        shape.record_bytes + 8 * plan.found.counts["dimensions"] + 40 * plan.candidates
    )
    for first in range(0, len(rows), file_rows):
        stop = min(first + file_rows, len(rows))
        step = -(-(stop - first) // -(-(stop - first) // max(1, most)))
        for start in range(first, stop, step):
            yield TestBlock(start, rows[start : min(start + step, stop)])


def find_rows(found: FeatureSet, wanted: Sequence[str]) -> np.ndarray:
    """The rows of a set's examples with these ids, ascending.

    Raises:
        InputError: some id is not there.
    """
    left = {one.encode() for one in wanted}
    rows: list[int] = []
    for shard in plan_shards(found, tiles.rows_per_file(1)):
        ids = found.read(shard.spans).example_ids.tolist()
        rows += [shard.start + i for i, one in enumerate(ids) if one in left]
        left -= set(ids)
        if not left:
            break
    if left:
        missing = sorted(one.decode() for one in left)
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"`test_ids`: {', '.join(map(repr, missing[:3]))}{more} not in {found.directory}: give "
            "ids of its examples"
        )
    return np.array(rows, np.int64)


def plan_index_files(plan: SearchPlan) -> list[tuple[int, StoredFile]]:
    """The index files of a plan, each with the row of its first vector."""
    listed, start = [], 0
    for file in plan.found.files:
        if file.name != PROJECTION_FILE:
            listed.append((start, file))
            start += file.count
    return listed


def pair_with_indexes(
    block: TestBlock, plan: SearchPlan
) -> Iterator[tuple[TestBlock, tuple[int, StoredFile]]]:
    """A block of test examples with each index file that it is searched in, and the row of the
    file's first vector.
    """
    for one in plan_index_files(plan):
        counters.add("tests-planned", len(block.rows))
        yield block, one


class IndexSearcher:
    """Searches index files for the neighbours of test blocks, one at a time; keeps the last of
    each.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Any, Any]] = {}

    def _get(self, what: str, key: Any, make: Any) -> Any:
        if self._kept.get(what, (None,))[0] != key:
            self._kept.pop(what, None)  # before another takes its place in memory
            self._kept[what] = (key, make())
        return self._kept[what][1]

    def search(
        self,
        block: TestBlock,
        start: int,
        file: StoredFile,
        test: FeatureSet,
        train: FeatureSet,
        plan: SearchPlan,
    ) -> ScoredBlock:
        """The best of an index file's candidates for a block of test examples, scored exactly."""
        with self._lock:
            identity = (plan.index, plan.found.fingerprint)
            projection: Projection = self._get(
                "projection", identity, lambda: read_projection(plan.index, plan.found)
            )
            built = self._get(
                "index",
                (*identity, file.name),
                lambda: faiss_index.of_bytes(filesystems.read_verified(plan.index, file)),
            )
            key = (test.directory, test.manifest.fingerprint, block.start, len(block.rows))
            tests: Features = self._get("tests", (*identity, *key), lambda: test.take(block.rows))
            near = faiss_index.nearest(
                built, projection.project(tests), plan.candidates, plan.nprobe, plan.ef_search
            )
            candidates = np.where(near < 0, -1, near + start)
            best = score_candidates(tests, candidates, train, plan.scoring)
            counters.add("tests-searched", len(tests))
            return ScoredBlock.of(tests, best, plan.scoring)


def score_candidates(
    tests: Features, candidates: np.ndarray, train: FeatureSet, scoring: Scoring
) -> TopK:
    """The k best of candidates [2, n, m], rows of the training set for proponents and opponents or
    −1, by their exact scores.
    """
    wanted = np.unique(candidates)
    wanted = wanted[wanted >= 0]
    step = max(1, _FEATURE_BYTES // train.shape.record_bytes)
    found = [TopK(_none(tests), _none(tests))]
    for first in range(0, len(wanted), step):
        rows = wanted[first : first + step]
        features = train.take(rows)
        rankings = []
        for sign, listed in zip((1, -1), candidates, strict=True):
            row, place = np.nonzero((listed >= rows[0]) & (listed <= rows[-1]))
            chosen = np.searchsorted(rows, listed[row, place])
            scores = exact_search.score_pairs(tests, features, row, chosen, scoring)
            counters.add("pairs-scored-exactly", len(scores))
            right = sign * scores > 0
            row, chosen = row[right], chosen[right]
            rankings.append(
                Ranking(
                    row.astype(np.int32),
                    scores[right],
                    features.example_ids[chosen],
                    features.labels[chosen],
                )
            )
        found.append(TopK(*rankings))
    return topk.merge(found, scoring.k)


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
    """What an index file holds for a block of test examples: (row of the block's first,
    ScoredBlock).
    """
    block, (start, file) = item
    return block.start, _searcher.search(block, start, file, test, train, plan)


@dataclasses.dataclass
class SearchIndex(beam.PTransform):
    """Searches an index for the test set's strongest training examples: (test, train) FeatureSet
    (one each) → (row, ScoredBlock).

    Attributes:
        plan: what is asked for.
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
            | "MergeTopK"
            >> beam.CombinePerKey(MergeTopK(self.plan.scoring.k))  # (row, ScoredBlock)
        )
