"""The search by an index: plans, blocks and exact scores of candidates."""

from __future__ import annotations

import dataclasses
import pathlib

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from tests.synthetic import assert_same, full_sort, write_set
from tests.vector_sets import RATES, build_index, feature_set, features_of
from transforms.core.errors import InputError
from transforms.scoring.influence import Scoring
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors.config import ProjectionConfig, SearchConfig
from transforms.vectors.search import (
    IndexSearcher,
    SearchIndex,
    SearchPlan,
    find_rows,
    pair_with_indexes,
    plan_blocks,
    plan_index_files,
    score_candidates,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, train: pathlib.Path) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("index")
    build_index(train, directory, ProjectionConfig("exact", normalize="cosine"), "flat")
    return directory


@pytest.fixture
def plan(index: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path) -> SearchPlan:
    config = SearchConfig(str(index), k=5, oversampling=60)
    return SearchPlan.of(config, feature_set(test_set), feature_set(train))


def test_a_plan_scores_as_the_index_was_built(plan: SearchPlan):
    assert plan.scoring == Scoring(RATES, 5, "cosine")
    assert plan.candidates == 300 and plan.sample == 41
    assert plan.settings["index"] == plan.manifest.fingerprint
    assert plan.settings["normalize"] == "cosine" and plan.settings["k"] == 5


def test_the_sample_is_of_the_test_examples_asked_for(
    index: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    config = SearchConfig(str(index), test_ids=("test-00001", "test-00002"))
    sets = feature_set(test_set), feature_set(train)
    assert SearchPlan.of(config, *sets).sample == 2
    assert SearchPlan.of(dataclasses.replace(config, recall_sample=1), *sets).sample == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nprobe": 4}, r"`nprobe` is for indexes of `kind=ivf`, .* is of flat: leave it out"),
        ({"ef_search": 4}, r"`ef_search` is for indexes of `kind=hnsw`, .* is of flat"),
        ({"test_ids": ("test-00001", "nobody")}, r"`test_ids`: 'nobody' not in"),
        ({"index": "/nowhere"}, r"`index='/nowhere'` holds no complete set, expected index"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    index: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path, changes: dict, message: str
):
    config = dataclasses.replace(SearchConfig(str(index)), **changes)
    with pytest.raises(InputError, match=message):
        SearchPlan.of(config, feature_set(test_set), feature_set(train))


def test_an_index_is_searched_with_its_own_training_set(
    tmp_path: pathlib.Path, index: pathlib.Path, test_set: pathlib.Path
):
    again = write_set(tmp_path / "again", [30], 5, "again-")
    with pytest.raises(InputError, match="was built from another feature set") as caught:
        SearchPlan.of(SearchConfig(str(index)), feature_set(test_set), feature_set(again))
    assert caught.value.field == "index"


def test_rows_of_ids_ascend(test_set: pathlib.Path):
    ids = ["test-00040", "test-00003", "test-00031"]
    assert find_rows(feature_set(test_set), ids).tolist() == [3, 31, 40]
    with pytest.raises(InputError, match="'a', 'b', 'c' and 1 more not in"):
        find_rows(feature_set(test_set), ["d", "c", "b", "a", "test-00001"])


def test_blocks_hold_each_test_example_once(plan: SearchPlan, test_set: pathlib.Path):
    blocks = list(plan_blocks(feature_set(test_set), plan))
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(41))
    config = dataclasses.replace(plan.config, test_ids=("test-00040", "test-00003"))
    (block,) = plan_blocks(feature_set(test_set), dataclasses.replace(plan, config=config))
    assert block.start == 0 and block.rows.tolist() == [3, 40]


def test_a_block_meets_every_index_file(plan: SearchPlan, test_set: pathlib.Path):
    files = plan_index_files(plan)
    assert [start for start, _ in files] == [0, 100, 200]
    (block,) = plan_blocks(feature_set(test_set), plan)
    assert [pair for _, pair in pair_with_indexes(block, plan)] == files


def test_candidates_are_scored_exactly(train: pathlib.Path, test_set: pathlib.Path):
    tests, trains = features_of(test_set), features_of(train)
    scoring = Scoring(RATES, 4)
    everything = np.broadcast_to(np.arange(-1, 280), (2, 41, 281))
    best = score_candidates(tests, everything, feature_set(train), scoring)
    assert_same(best, full_sort(tests, trains, scoring))
    none = score_candidates(tests, np.full((2, 41, 3), -1), feature_set(train), scoring)
    assert len(none.proponents) == len(none.opponents) == 0


def test_a_searcher_gives_the_best_of_each_file(
    plan: SearchPlan, train: pathlib.Path, test_set: pathlib.Path
):
    (block,) = plan_blocks(feature_set(test_set), plan)
    searcher = IndexSearcher()
    tests, trains = features_of(test_set), features_of(train)
    for start, file in plan_index_files(plan):
        scored = searcher.search(
            block, start, file, feature_set(test_set), feature_set(train), plan
        )
        in_file = trains.take(slice(start, start + file.count))
        assert_same(scored.best, full_sort(tests, in_file, plan.scoring))
        assert scored.test_ids.tolist() == tests.example_ids.tolist()


def test_a_graph_gives_the_best_of_all_files(
    plan: SearchPlan, train: pathlib.Path, test_set: pathlib.Path
):
    expected = full_sort(features_of(test_set), features_of(train), plan.scoring)

    def matches(blocks) -> None:
        ((start, scored),) = blocks
        assert start == 0
        assert_same(scored.best, expected)

    with beam.Pipeline() as pipeline:
        tests = pipeline | "ReadTest" >> ReadFeatureSet(str(test_set))
        trains = pipeline | "ReadTrain" >> ReadFeatureSet(str(train))
        assert_that((tests, trains) | SearchIndex(plan), matches)
