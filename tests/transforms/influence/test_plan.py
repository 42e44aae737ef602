"""What is refused before anything is scored, and the manifest of a result."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.synthetic import draw
from tests.transforms.influence.test_score import committed
from transforms.core.errors import InputError
from transforms.influence.config import ScoringConfig
from transforms.influence.plan import (
    check_memory,
    check_sets,
    influence_draft,
    plan_tiles,
    scoring_of,
)
from transforms.storage.feature_set import FeatureSet


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, FeatureSet]:
    rng = np.random.default_rng(0)
    test, train = draw(rng, 23, 2, 3, 6, "test-"), draw(rng, 170, 2, 3, 6, "train-")
    return (
        committed(tmp_path_factory.mktemp("test"), test, 9),
        committed(tmp_path_factory.mktemp("train"), train, 40),
    )


def test_an_empty_training_set_is_refused_and_an_empty_test_set_has_no_tiles(
    sets: tuple[FeatureSet, FeatureSet], tmp_path: pathlib.Path
) -> None:
    empty = committed(tmp_path, draw(np.random.default_rng(0), 1, 2, 3, 6).take(slice(0, 0)), 9)
    assert list(plan_tiles(empty, sets[1], ScoringConfig(k=3))) == []
    with pytest.raises(InputError, match="holds no example"):
        list(plan_tiles(sets[0], empty, ScoringConfig(k=3)))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((0.1,), "has 1 numbers, the features are of 2 checkpoints"),
        ((0.1, 0.0), "rate of epoch-1 is 0"),
        ((0.1, -1.0), "rate of epoch-1 is -1"),
    ],
)
def test_unusable_learning_rates_are_refused(sets, rates, message):
    with pytest.raises(InputError, match=message):
        scoring_of(ScoringConfig(k=4, learning_rates=rates), sets[1].manifest)


def test_too_little_memory_is_said_before_the_start(sets):
    with pytest.raises(InputError, match=r"`memory_gb=0\.1`: .* too little"):
        check_memory(ScoringConfig(k=4, memory_gb=0.1), sets[1].shape, 1)
    # How many workers share a machine is known there only.
    check_memory(ScoringConfig(k=4, memory_gb=0.1), sets[1].shape, None)


def test_records_that_are_examples_have_no_positions_to_sum(
    sets: tuple[FeatureSet, FeatureSet],
) -> None:
    with pytest.raises(InputError, match=r"the records of .* are examples: leave it out") as raised:
        check_sets(*sets, ScoringConfig(sum_positions=True))
    assert raised.value.field == "sum_positions"


def test_settings_of_a_result_are_what_its_rows_depend_on(
    sets: tuple[FeatureSet, FeatureSet],
) -> None:
    test, train = (feature_set.manifest for feature_set in sets)
    draft = influence_draft(test, train, ScoringConfig(k=3))
    tiled = ScoringConfig(k=3, memory_gb=9.0, test_rows_per_tile=1, train_rows_per_tile=7)
    assert influence_draft(test, train, tiled) == draft
    named = ScoringConfig(k=3, learning_rates=(0.1, 0.02))
    assert influence_draft(test, train, named) == draft
    others = [
        influence_draft(test, train, ScoringConfig(k=4)),
        influence_draft(test, train, ScoringConfig(k=3, normalize="cosine")),
        influence_draft(test, train, ScoringConfig(k=3, learning_rates=(0.1, 0.1))),
        influence_draft(test, train, ScoringConfig(k=3), ("a", "b", "c")),
        influence_draft(test, train, ScoringConfig(k=3), settings={"index": "of FAISS"}),
    ]
    assert len({draft.fingerprint, *(other.fingerprint for other in others)}) == 6
