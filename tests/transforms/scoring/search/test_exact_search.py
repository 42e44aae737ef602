"""The exact search against a full sort, by each of its ways."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import assert_same, draw, features, full_sort
from transforms.core.features import Features
from transforms.core.topk import TopK
from transforms.scoring.influence import NORMALIZATIONS, Scoring
from transforms.scoring.search.exact_search import COUNTS, ExactSearch
from transforms.scoring.search.tuning import DEFAULT_TUNING, SearchTuning


def run(
    test: Features,
    train: Features,
    scoring: Scoring,
    chunk: int | None = None,
    dense: bool = False,
    tuning: SearchTuning = DEFAULT_TUNING,
) -> ExactSearch:
    found = ExactSearch(test, scoring, dense, tuning=tuning)
    pairs = 0
    for start in range(0, len(train), chunk or max(1, len(train))):
        pairs += sum(found.scan(train.take(slice(start, start + (chunk or len(train))))))
    assert pairs == len(test) * len(train)
    assert sum(found.counts[name] for name in COUNTS[:4]) == pairs
    return found


def best(
    test: Features,
    train: Features,
    scoring: Scoring,
    chunk: int | None = None,
    dense: bool = False,
    tuning: SearchTuning = DEFAULT_TUNING,
) -> TopK:
    return run(test, train, scoring, chunk, dense, tuning).result()


SMALL = SearchTuning(
    group_tests=20, product_tests=16, followers=3, sampled_tests=2, sampling_factor=4
)
# Each way of the search, whatever the costs would say; and groups so small that their borders are
# crossed.
WAYS = {
    "sieves": dataclasses.replace(SMALL, term_cost=0.0, score_cost=0.0),
    "products": dataclasses.replace(SMALL, hopeless_cost=-1.0),
    "whatever costs less": SMALL,
}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    return request.param


def twisted(rng: np.random.Generator, train: Features, twist: str) -> Features:
    """Training examples that are hard to tell apart, to bound or to represent."""
    n = len(train)
    loss_grads, activations = train.loss_grads.copy(), train.activations.copy()
    if twist == "duplicates":
        loss_grads[:], activations[:] = loss_grads[:1], activations[:1]
    elif twist == "near duplicates":
        loss_grads[:] = loss_grads[:1] * (1 + 1e-7 * rng.integers(-3, 4, (n, 1, 1)))
        activations[:] = activations[:1]
    elif twist == "zeros":
        loss_grads[rng.random(n) < 0.5] = 0
        activations[rng.random(n) < 0.2] = 0
    elif twist == "signed":
        activations = rng.normal(size=activations.shape)
    elif twist == "slightly negative":
        activations -= np.float32(0.05)
    elif twist == "few directions":
        activations = rng.normal(size=(n, activations.shape[1], 2)) @ rng.normal(
            size=(2, activations.shape[2])
        )
    elif twist == "equal norms":
        loss_grads = loss_grads.astype(np.float64)
        loss_grads /= np.linalg.norm(loss_grads, axis=-1, keepdims=True).clip(1e-30)
    elif twist == "tiny":
        # Products of these are denormal or zero in float32, and still count.
        loss_grads *= np.float32(1e-38) / np.abs(loss_grads).max(initial=1e-30)
    elif twist == "huge":
        loss_grads = loss_grads.astype(np.float64) * (
            1e30 / max(1e-30, float(np.abs(loss_grads).max()))
        )
    return features(loss_grads, activations)


TWISTS = [
    "none",
    "duplicates",
    "near duplicates",
    "zeros",
    "signed",
    "slightly negative",
    "few directions",
    "equal norms",
    "tiny",
    "huge",
]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tests=st.integers(1, 12),
    trains=st.integers(1, 150),
    checkpoints=st.integers(1, 3),
    outputs=st.sampled_from([1, 2, 6, 70]),
    units=st.sampled_from([1, 2, 9, 50]),
    more=st.integers(-149, 5),
    spread=st.sampled_from([0.0, 2.0, 12.0]),
    normalize=st.sampled_from(NORMALIZATIONS),
    twist=st.sampled_from(TWISTS),
    chunk=st.sampled_from([None, 1, 7, 64]),
    dense=st.booleans(),
)
def test_the_search_equals_a_full_sort(
    seed, tests, trains, checkpoints, outputs, units, more, spread, normalize, twist, chunk, dense
):
    rng = np.random.default_rng(seed)
    test = draw(rng, tests, checkpoints, outputs, units, spread=spread)
    train = twisted(rng, draw(rng, trains, checkpoints, outputs, units, spread=spread), twist)
    scoring = Scoring(
        tuple(10.0 ** -rng.integers(0, 4, checkpoints)), max(1, trains + more), normalize
    )
    assert_same(best(test, train, scoring, chunk, dense), full_sort(test, train, scoring))


@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_every_way_equals_a_full_sort(way, normalize, twist):
    rng = np.random.default_rng(6)
    test, train = (
        draw(rng, 50, 2, 5, 40, spread=1),
        twisted(rng, draw(rng, 1000, 2, 5, 40, spread=1), twist),
    )
    for k, chunk in ((1, None), (10, 600), (1005, None)):
        scoring = Scoring((0.1, 0.02), k, normalize)
        found = run(test, train, scoring, chunk, tuning=WAYS[way])
        assert_same(found.result(), full_sort(test, train, scoring))
        if way == "sieves":
            assert found.counts["products"] == 0
        elif way == "products":
            assert found.counts["blocks"] == found.counts["loss_gradients"] == 0


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_near_duplicates_on_both_sides_of_a_border(way, normalize, k):
    # 1e-7 apart, which float32 arithmetic does not tell apart, in other blocks and chunks.
    rng = np.random.default_rng(6)
    test, train = draw(rng, 50, 2, 3, 6, spread=1), draw(rng, 1000, 2, 3, 6, spread=1)
    loss_grads, activations = train.loss_grads.copy(), train.activations.copy()
    loss_grads[500:1000] = loss_grads[:500] * (
        1 + np.float32(1e-7) * rng.integers(-1, 2, (500, 1, 1)).astype(np.float32)
    )
    activations[500:1000] = activations[:500]
    train = features(loss_grads, activations)
    scoring = Scoring((0.1, 0.02), k, normalize)
    found = best(test, train, scoring, chunk=333, tuning=WAYS[way])
    assert_same(found, full_sort(test, train, scoring))


def test_examples_of_equal_score_come_in_the_order_of_their_ids(way):
    rng = np.random.default_rng(10)
    test, one = draw(rng, 5, 2, 3, 6), draw(rng, 1, 2, 3, 6)
    train = features(
        np.repeat(one.loss_grads, 3000, axis=0), np.repeat(one.activations, 3000, axis=0)
    ).take(rng.permutation(3000))
    for normalize in ("none", "cosine"):
        scoring = Scoring((0.1, 0.02), 7, normalize)
        found = best(test, train, scoring, chunk=700, tuning=WAYS[way])
        assert_same(found, full_sort(test, train, scoring))


def test_a_trained_models_pairs_are_mostly_skipped():
    # Confident predictions: nearly all gradients are nearly zero, as in any trained model.
    rng = np.random.default_rng(11)

    def confident(n: int) -> Features:
        logits = rng.normal(size=(n, 2, 10)) * 2
        labels = rng.integers(0, 10, n)
        logits[np.arange(n), :, labels] += rng.gamma(4, 4, (n, 1))
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        p[np.arange(n), :, labels] -= 1
        return features(p, np.maximum(rng.normal(size=(n, 2, 20)), 0))

    test, train = confident(64), confident(8192)
    scoring = Scoring((0.1, 0.1), 5)
    found = run(test, train, scoring)
    pairs = len(test) * len(train)
    assert found.counts["blocks"] > 0.1 * pairs
    assert found.counts["examined"] < 0.02 * pairs
    assert_same(found.result(), best(test, train, scoring, dense=True))


def test_where_nothing_can_be_skipped_all_products_are_made():
    rng = np.random.default_rng(12)
    side = twisted(rng, draw(rng, 2000, 2, 10, 40, spread=0), "equal norms")
    test = side.take(slice(0, 40))
    found = run(test, side, Scoring((0.1, 0.1), 5, "cosine"))
    assert found.counts["products"] == 40 * 2000
    assert_same(found.result(), full_sort(test, side, Scoring((0.1, 0.1), 5, "cosine")))


def test_one_outlier_does_not_blunt_the_sieves():
    rng = np.random.default_rng(11)
    test, train = draw(rng, 10, 2, 3, 6, spread=1), draw(rng, 4000, 2, 3, 6, spread=1)
    loss_grads = train.loss_grads.copy()
    loss_grads[77] *= 1e34
    train = features(loss_grads, train.activations)
    scoring = Scoring((0.1, 0.02), 5)
    found = run(test, train, scoring)
    assert_same(found.result(), full_sort(test, train, scoring))
    assert found.counts["examined"] < 0.3 * 10 * 4000


def test_zero_gradients_are_neither_proponents_nor_opponents():
    rng = np.random.default_rng(5)
    test, train = draw(rng, 4, 2, 3, 5), draw(rng, 20, 2, 3, 5)
    loss_grads = train.loss_grads.copy()
    loss_grads[::2] = 0
    train = features(loss_grads, train.activations)
    none = features(np.zeros((1, 2, 3)), np.ones((1, 2, 5)))
    for normalize in NORMALIZATIONS:
        found = best(test, train, Scoring((0.1, 0.1), 20, normalize))
        ids = {*found.proponents.ids.tolist(), *found.opponents.ids.tolist()}
        assert ids == {b"%05d" % i for i in range(1, 20, 2)}
        nothing = best(none, train, Scoring((0.1, 0.1), 20, normalize))
        assert len(nothing.proponents) == len(nothing.opponents) == 0


def test_pairs_without_a_gradient_are_told_of_too():
    rng = np.random.default_rng(5)
    test, train = draw(rng, 40, 2, 3, 5), draw(rng, 90, 2, 3, 5)
    loss_grads = test.loss_grads.copy()
    loss_grads[::2] = 0
    test = features(loss_grads, test.activations)
    scoring = Scoring((0.1, 0.1), 7)
    for dense in (False, True):
        for tuning in WAYS.values():
            found = run(test, train, scoring, chunk=50, dense=dense, tuning=tuning)
            assert_same(found.result(), full_sort(test, train, scoring))


def test_float32_alone_would_choose_wrong_members():
    # What the margin is for: among near-duplicates the order by float32 products is not the order
    # by canonical scores.
    rng = np.random.default_rng(7)
    base = draw(rng, 1, 2, 8, 64, spread=0)
    wiggle = 1 + 3e-8 * rng.normal(size=(400, 2, 64))
    train = features(
        np.repeat(base.loss_grads, 400, axis=0), (np.repeat(base.activations, 400, axis=0) * wiggle)
    )
    scoring = Scoring((0.1, 0.1), 20)
    exact = full_sort(base, train, scoring).proponents.ids
    single = np.einsum("itc,jtc->ijt", base.loss_grads, train.loss_grads) * np.einsum(
        "itd,jtd->ijt", base.activations, train.activations
    )
    by_float32 = np.argsort(-single.sum(2, dtype=np.float32)[0], kind="stable")[:20]
    assert {b"%05d" % j for j in by_float32} != set(exact.tolist())
    assert_same(best(base, train, scoring), full_sort(base, train, scoring))


def test_the_same_few_opponents_do_not_dominate_under_cosine():
    # A few training examples with large gradients are everybody's opponents without normalisation.
    rng = np.random.default_rng(8)
    test, train = draw(rng, 60, 2, 4, 16, spread=0), draw(rng, 400, 2, 4, 16, spread=0)
    loss_grads = train.loss_grads.copy()
    loss_grads[:3] *= 100
    train = features(loss_grads, train.activations)

    def most_frequent(normalize: str) -> int:
        opponents = best(test, train, Scoring((0.1, 0.1), 5, normalize)).opponents.ids
        return int(np.unique(opponents, return_counts=True)[1].max())

    assert most_frequent("none") >= 20
    assert most_frequent("cosine") < 15
    assert most_frequent("relatif") < 15
