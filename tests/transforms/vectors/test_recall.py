"""The recall of a search, on a sample of its test examples."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from tests.synthetic import full_sort
from tests.vector_sets import RATES, build_index, feature_set, features_of
from transforms.core.topk import Ranking, TopK
from transforms.influence.records import RecordBlock
from transforms.scoring.influence import Scoring
from transforms.storage.manifests import Manifest
from transforms.vectors.config import ProjectionConfig, SearchConfig
from transforms.vectors.files import plan_shards
from transforms.vectors.recall import (
    ids_by_test,
    recall,
    recalls,
    report_note,
    sampled_rows,
    search_exactly,
)
from transforms.vectors.search import SearchPlan, TestBlock, plan_blocks


def ranking(candidates: dict[int, list[bytes]], sign: int) -> Ranking:
    rows = np.array([row for row, ids in candidates.items() for _ in ids], np.int32)
    ids = [train_id for ids in candidates.values() for train_id in ids]
    return Ranking(
        rows, np.full(len(ids), float(sign)), np.array(ids, "S1"), np.zeros((len(ids), 1))
    )


def block(tests: list[bytes], proponents: dict, opponents: dict) -> SimpleNamespace:
    """The fields of a ScoredBlock that recall looks at."""
    return SimpleNamespace(
        test_ids=np.array(tests), best=TopK(ranking(proponents, 1), ranking(opponents, -1))
    )


def test_sampled_rows_are_spread_over_all_blocks():
    blocks = [TestBlock(4, np.array([6, 7, 8, 9])), TestBlock(0, np.array([1, 2, 3, 5]))]
    assert sampled_rows(blocks, 3).tolist() == [1, 5, 9]
    assert sampled_rows(blocks, 100).tolist() == [1, 2, 3, 5, 6, 7, 8, 9]
    assert sampled_rows([], 3).tolist() == []


def test_ids_are_listed_by_test_example():
    scored = block([b"s", b"t"], {0: [b"a", b"b"], 1: [b"c"]}, {1: [b"d"]})
    assert ids_by_test(scored) == {b"s": ({b"a", b"b"}, set()), b"t": ({b"c"}, {b"d"})}


def test_recalls_are_of_sampled_test_examples_with_an_exact_answer():
    exact = [
        block([b"s", b"elsewhere"], {0: [b"a", b"b"], 1: [b"a"]}, {1: [b"a"]}),
        block([b"t"], {0: [b"c"]}, {0: [b"d", b"e", b"f", b"g"]}),
    ]
    scored = block([b"s", b"t", b"u"], {0: [b"a", b"x"], 1: [b"c"], 2: [b"a"]}, {1: [b"d"]})
    assert recalls(scored, exact) == ([0.5, 1.0], [0.25])


def test_a_summary_has_the_mean_and_the_lowest_of_each_sign():
    assert recall([([0.5, 1.0], []), ([0.75], [])], 5, 3) == {
        "k": 5,
        "tests": 3,
        "proponents": {"recall": 0.75, "lowest": 0.5},
        "opponents": None,
    }


def test_the_exact_answer_is_that_of_a_full_sort(
    tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    build_index(train, tmp_path, ProjectionConfig("exact"))
    test, trains = feature_set(test_set), feature_set(train)
    plan = SearchPlan.of(SearchConfig(str(tmp_path), k=5, recall_sample=7), test, trains)
    blocks = list(plan_blocks(test, plan))
    (shard,) = plan_shards(trains, 1000)
    ((_, exact),) = search_exactly(shard, test, trains, plan, blocks)
    tests = features_of(test_set).take(sampled_rows(blocks, 7))
    best = full_sort(tests, features_of(train), Scoring(RATES, 5))
    expected = RecordBlock.of(tests, best, plan.scoring)
    assert ids_by_test(exact) == ids_by_test(expected)
    assert recalls(exact, [expected]) == (
        pytest.approx([1.0] * len(recalls(exact, [expected])[0])),
        pytest.approx([1.0] * len(recalls(exact, [expected])[1])),
    )
    assert list(search_exactly(shard, test, trains, plan, [])) == []


@pytest.mark.parametrize(
    ("sample", "words"),
    [(7, "recall.json tells what part of the exact answer was found"), (0, "not been measured")],
)
def test_a_report_says_that_an_index_chose_the_candidates(sample: int, words: str):
    plan = SearchPlan(SearchConfig("index"), Manifest("index", "f", {}, (), {}), "t", sample)
    assert "looked for by an index" in report_note(plan) and words in report_note(plan)
