"""Scores against their definition, and the search against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import assert_same, draw, exact_scores, features, full_sort
from transforms import kernels
from transforms.kernels import NORMALIZATIONS, Scoring, Search, canonical_scores, self_influence
from transforms.records import Features


def all_pairs(test: Features, train: Features) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(len(test) * len(train)), len(train))


def search(test: Features, train: Features, scoring: Scoring, chunk: int | None = None):
    found = Search(test, scoring)
    pairs = 0
    for start in range(0, len(train), chunk or max(1, len(train))):
        pairs += sum(found.scan(train.take(slice(start, start + (chunk or len(train))))))
    assert pairs == len(test) * len(train)
    return found.result()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_canonical_scores_are_the_definition(normalize):
    rng = np.random.default_rng(0)
    test, train = draw(rng, 13, 3, 4, 7), draw(rng, 29, 3, 4, 7)
    scoring = Scoring((0.1, 0.02, 0.003), 5, normalize)
    scores = canonical_scores(test, train, *all_pairs(test, train), scoring).reshape(13, 29)
    exact = exact_scores(test, train, scoring)
    np.testing.assert_allclose(scores, exact, rtol=1e-10, atol=1e-13 * np.abs(exact).max())


def test_closed_form_of_a_linear_regression():
    # y = w x, squared loss, label x: the gradient of example i at checkpoint t is 2 (w_t − 1) i · i, so
    # score(i, j) = Σ_t 4 i² j² (w_t − 1)² with every η = 1.
    w = np.array([0.0, 0.5, 0.9])
    x = np.arange(1, 6)
    side = features((2 * (w[None, :] - 1) * x[:, None])[..., None], np.repeat(x[:, None, None], 3, axis=1))
    scores = canonical_scores(side, side, *all_pairs(side, side), Scoring((1.0, 1.0, 1.0), 3)).reshape(5, 5)
    expected = 4 * x[:, None] ** 2 * x[None, :] ** 2 * np.sum((w - 1) ** 2)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_identity_features_score_on_the_diagonal_only():
    side = features(np.ones((4, 2, 1)), np.repeat(np.eye(4)[:, None, :], 2, axis=1))
    scores = canonical_scores(side, side, *all_pairs(side, side), Scoring((0.5, 0.25), 3)).reshape(4, 4)
    np.testing.assert_array_equal(scores, 0.75 * np.eye(4))


def test_the_sum_over_checkpoints_is_outside_the_product():
    # The product of sums, (Σ_t δ·δ')(Σ_t h·h'), is the error of the original notebook: it must give another number here.
    rng = np.random.default_rng(1)
    test, train = draw(rng, 5, 3, 4, 6, spread=0), draw(rng, 5, 3, 4, 6, spread=0)
    scores = canonical_scores(test, train, *all_pairs(test, train), Scoring((1.0, 1.0, 1.0), 3)).reshape(5, 5)
    wrong = np.einsum("itc,jtc->ij", test.loss_grads, train.loss_grads) * np.einsum("itd,jtd->ij", test.activations, train.activations)
    assert np.abs(scores - wrong).max() > 0.1 * np.abs(scores).max()
    np.testing.assert_allclose(scores, exact_scores(test, train, Scoring((1.0, 1.0, 1.0), 3)), rtol=1e-9, atol=1e-9)


def test_a_canonical_score_depends_on_its_two_records_alone():
    rng = np.random.default_rng(2)
    test, train = draw(rng, 7, 2, 5, 33), draw(rng, 900, 2, 5, 33)
    scoring = Scoring((0.3, 0.1), 5, "cosine")
    together = canonical_scores(test, train, *all_pairs(test, train), scoring).reshape(7, 900)
    for i, j in ((0, 0), (3, 511), (6, 899)):
        alone = canonical_scores(test.take([i]), train.take([j]), np.array([0]), np.array([0]), scoring)
        assert alone.tobytes() == together[i, j].tobytes()


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.1, 0.003)])
def test_self_influence_is_the_diagonal(rates):
    side = draw(np.random.default_rng(3), 40, 2, 4, 9)
    diagonal = canonical_scores(side, side, np.arange(40), np.arange(40), Scoring(rates, 1))
    np.testing.assert_allclose(self_influence(side, rates), diagonal, rtol=1e-13)


def test_cosine_of_an_example_with_itself_is_one_and_no_score_is_larger():
    side = draw(np.random.default_rng(4), 30, 3, 4, 8)
    scores = canonical_scores(side, side, *all_pairs(side, side), Scoring((0.1, 0.1, 0.2), 1, "cosine")).reshape(30, 30)
    np.testing.assert_allclose(np.diag(scores), 1, rtol=1e-13)
    assert np.abs(scores).max() <= 1 + 1e-13


def test_zero_gradients_are_neither_proponents_nor_opponents():
    rng = np.random.default_rng(5)
    test, train = draw(rng, 4, 2, 3, 5), draw(rng, 20, 2, 3, 5)
    loss_grads = train.loss_grads.copy()
    loss_grads[::2] = 0
    train = features(loss_grads, train.activations)
    none = features(np.zeros((1, 2, 3)), np.ones((1, 2, 5)))
    for normalize in NORMALIZATIONS:
        found = search(test, train, Scoring((0.1, 0.1), 20, normalize))
        ids = {*found.proponents.ids.tolist(), *found.opponents.ids.tolist()}
        assert ids == {b"%05d" % i for i in range(1, 20, 2)}
        nothing = search(none, train, Scoring((0.1, 0.1), 20, normalize))
        assert len(nothing.proponents) == len(nothing.opponents) == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tests=st.integers(1, 12),
    trains=st.integers(1, 150),
    checkpoints=st.integers(1, 3),
    outputs=st.integers(1, 6),
    units=st.integers(1, 9),
    k=st.integers(1, 160),
    spread=st.sampled_from([0.0, 2.0, 12.0]),
    normalize=st.sampled_from(NORMALIZATIONS),
    twist=st.sampled_from(["none", "duplicates", "near duplicates", "zeros", "tiny", "huge"]),
    chunk=st.sampled_from([None, 1, 7, 64]),
)
def test_search_equals_a_full_sort(seed, tests, trains, checkpoints, outputs, units, k, spread, normalize, twist, chunk):
    rng = np.random.default_rng(seed)
    test = draw(rng, tests, checkpoints, outputs, units, spread=spread)
    train = draw(rng, trains, checkpoints, outputs, units, spread=spread)
    loss_grads, activations = train.loss_grads.copy(), train.activations.copy()
    if twist == "duplicates":
        loss_grads[:], activations[:] = loss_grads[:1], activations[:1]
    elif twist == "near duplicates":
        loss_grads[:] = loss_grads[:1] * (1 + 1e-7 * rng.integers(-3, 4, (trains, 1, 1)))
        activations[:] = activations[:1]
    elif twist == "zeros":
        loss_grads[rng.random(trains) < 0.5] = 0
        activations[rng.random(trains) < 0.2] = 0
    elif twist == "tiny":
        # Products of these are denormal or zero in float32, and still count.
        loss_grads *= np.float32(1e-38) / np.abs(loss_grads).max(initial=1e-30)
    elif twist == "huge":
        loss_grads *= np.float32(1e30) / np.abs(loss_grads).max(initial=1e-30)
    train = features(loss_grads, activations)
    scoring = Scoring(tuple(10.0 ** -rng.integers(0, 4, checkpoints)), k, normalize)
    assert_same(search(test, train, scoring, chunk), full_sort(test, train, scoring))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("k", [1, 10, 3000])
def test_search_across_blocks_equals_a_full_sort(monkeypatch, normalize, k):
    # Small blocks, so that borders of tests and of trains are crossed; near-duplicates 1e-7 apart stand on both sides of them.
    monkeypatch.setattr(kernels, "BLOCK_TESTS", 16)
    monkeypatch.setattr(kernels, "BLOCK_TRAINS", 128)
    rng = np.random.default_rng(6)
    test, train = draw(rng, 50, 2, 3, 6, spread=1), draw(rng, 1000, 2, 3, 6, spread=1)
    loss_grads, activations = train.loss_grads.copy(), train.activations.copy()
    loss_grads[500:1000] = loss_grads[:500] * (1 + np.float32(1e-7) * rng.integers(-1, 2, (500, 1, 1)).astype(np.float32))
    activations[500:1000] = activations[:500]
    train = features(loss_grads, activations)
    scoring = Scoring((0.1, 0.02), k, normalize)
    assert_same(search(test, train, scoring, chunk=333), full_sort(test, train, scoring))


def test_float32_alone_would_choose_wrong_members():
    # What the margin is for: among near-duplicates the order by float32 products is not the order by canonical scores.
    rng = np.random.default_rng(7)
    base = draw(rng, 1, 2, 8, 64, spread=0)
    wiggle = 1 + 3e-8 * rng.normal(size=(400, 2, 64))
    train = features(np.repeat(base.loss_grads, 400, axis=0), (np.repeat(base.activations, 400, axis=0) * wiggle))
    scoring = Scoring((0.1, 0.1), 20)
    exact = full_sort(base, train, scoring).proponents.ids
    single = np.einsum("itc,jtc->ijt", base.loss_grads, train.loss_grads) * np.einsum("itd,jtd->ijt", base.activations, train.activations)
    by_float32 = np.argsort(-single.sum(2, dtype=np.float32)[0], kind="stable")[:20]
    assert {b"%05d" % j for j in by_float32} != set(exact.tolist())
    assert_same(search(base, train, scoring), full_sort(base, train, scoring))


@pytest.fixture
def decided(monkeypatch) -> list[int]:
    """The numbers of pairs that are scored canonically, as they are."""
    counts: list[int] = []
    decide = kernels._TestBlock.decide

    def watched(block, sign, train, tests, trains):
        counts.append(len(tests))
        decide(block, sign, train, tests, trains)

    monkeypatch.setattr(kernels._TestBlock, "decide", watched)
    return counts


def test_where_float32_is_no_sieve_float64_is(monkeypatch, decided):
    # A margin that nearly everything passes, as with many activations and a large k: the block is multiplied again.
    rng = np.random.default_rng(9)
    test, train = draw(rng, 20, 2, 6, 40, spread=0.1), draw(rng, 900, 2, 6, 40, spread=0.1)
    types = []
    scaled = kernels._TestBlock.scaled

    def watched(block, dtype):
        types.append(dtype)
        return scaled(block, dtype)

    margin = kernels.relative_margin
    monkeypatch.setattr(kernels, "relative_margin", lambda *shape: margin(*shape) * (1e4 if len(shape) == 3 else 1))
    monkeypatch.setattr(kernels._TestBlock, "scaled", watched)
    scoring = Scoring((0.1, 0.02), 40)
    assert_same(search(test, train, scoring), full_sort(test, train, scoring))
    assert np.float64 in types
    # The finalists are those that are wanted, and not all pairs.
    assert sum(decided) < 2 * 20 * 40 * 1.2


@pytest.mark.parametrize("normalize", ["none", "cosine"])
def test_ties_without_end_are_decided_in_parts(monkeypatch, normalize):
    # Thousands of equal records: no product tells them apart, ids decide, and the pool does not grow with their number.
    monkeypatch.setattr(kernels, "BLOCK_TRAINS", 64)
    monkeypatch.setattr(kernels, "_DECIDED_PAIRS", 500)
    rng = np.random.default_rng(10)
    test, one = draw(rng, 5, 2, 3, 6), draw(rng, 1, 2, 3, 6)
    n = 3000
    train = features(np.repeat(one.loss_grads, n, axis=0), np.repeat(one.activations, n, axis=0))
    train = train.take(rng.permutation(n))
    capacities = []
    take = kernels._Pool.take_crowded

    def watched(pool):
        capacities.append(pool._capacity)
        return take(pool)

    monkeypatch.setattr(kernels._Pool, "take_crowded", watched)
    scoring = Scoring((0.1, 0.02), 7, normalize)
    assert_same(search(test, train, scoring), full_sort(test, train, scoring))
    assert max(capacities) <= kernels._slots(7) + 64


def test_one_outlier_does_not_blunt_the_sieve(monkeypatch, decided):
    rng = np.random.default_rng(11)
    test, train = draw(rng, 10, 2, 3, 6, spread=1), draw(rng, 2000, 2, 3, 6, spread=1)
    loss_grads = train.loss_grads.copy()
    loss_grads[77] *= 1e34
    train = features(loss_grads, train.activations)
    monkeypatch.setattr(kernels, "BLOCK_TRAINS", 256)
    scoring = Scoring((0.1, 0.02), 5)
    assert_same(search(test, train, scoring), full_sort(test, train, scoring))
    # Only the outlier's own block, whose margin is its, lets everything pass.
    assert sum(decided) < 2 * 10 * (256 + 2 * 5)


def test_products_are_made_on_the_cpu():
    # A GPU may use TensorFloat-32, for which the margin is not proven.
    side = draw(np.random.default_rng(12), 4, 2, 3, 5)
    scaled = kernels._scaled(side, np.arange(4), (0.1, 0.1), 1.0, 4)
    assert all("CPU" in tensor.device for tensor in (scaled.loss_grads, scaled.activations))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    checkpoints=st.integers(1, 4),
    outputs=st.integers(1, 40),
    units=st.integers(1, 300),
    scale=st.sampled_from([1e-36, 1e-20, 1.0, 1e18]),
)
def test_the_margin_holds(seed, checkpoints, outputs, units, scale):
    # |float32 score − canonical score| ≤ relative · N N' + absolute, in the scaled units that the search works in.
    rng = np.random.default_rng(seed)
    test = draw(rng, 20, checkpoints, outputs, units, spread=3)
    train = draw(rng, 30, checkpoints, outputs, units, spread=3)
    train = features(train.loss_grads * np.float32(scale), train.activations)
    rates = tuple(rng.uniform(0.01, 1, checkpoints))
    own_test, own_train = (np.sqrt(self_influence(side, rates)) for side in (test, train))
    if own_train.max() == 0 or own_test.min() == 0:
        return
    unit = own_train.max()
    left = kernels._scaled(test, np.arange(20), rates, own_test, 20)
    right = kernels._scaled(train, np.arange(30), rates, unit, 30)
    found = kernels._block_scores(left, right).astype(np.float64)
    exact = canonical_scores(test, train, *all_pairs(test, train), Scoring(rates, 1)).reshape(20, 30) / (own_test[:, None] * unit)
    shape = (checkpoints, outputs, units)
    margin = kernels.relative_margin(*shape) * own_train[None, :] / unit + kernels.absolute_margin(*shape)
    assert (np.abs(found - exact) <= margin).all()


def test_the_same_few_opponents_do_not_dominate_under_cosine():
    # A few training examples with large gradients are everybody's opponents without normalisation.
    rng = np.random.default_rng(8)
    test, train = draw(rng, 60, 2, 4, 16, spread=0), draw(rng, 400, 2, 4, 16, spread=0)
    loss_grads = train.loss_grads.copy()
    loss_grads[:3] *= 100
    train = features(loss_grads, train.activations)

    def most_frequent(normalize: str) -> int:
        opponents = search(test, train, Scoring((0.1, 0.1), 5, normalize)).opponents.ids
        return int(np.unique(opponents, return_counts=True)[1].max())

    assert most_frequent("none") >= 20
    assert most_frequent("cosine") < 15
    assert most_frequent("relatif") < 15
