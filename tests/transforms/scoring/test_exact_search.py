"""The search against a full sort, its bounds against scores, and compiled scores against their
definition.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import assert_same, draw, features, full_sort
from transforms.core.features import Features
from transforms.scoring import exact_search
from transforms.scoring.error_bounds import bound_margin, product_margin
from transforms.scoring.exact_search import COUNTS, Search
from transforms.scoring.influence import NORMALIZATIONS, Scoring, canonical_scores
from transforms.scoring.kernels import bounds, layout, pairs, products
from transforms.scoring.kernels.layout import SUPERGROUP_SIZE
from transforms.scoring.kernels.register_tiles import SKETCH, SKETCH_COLUMNS
from transforms.scoring.kernels.simd import GROUP_SIZE


@numba.njit
def bounds_of_candidates(
    test: layout.Factors, train: layout.Factors, row: int, codes: np.ndarray
) -> np.ndarray:
    one, other = layout.addresses_of(test), layout.addresses_of(train)
    work = pairs.allocate_work(one.checkpoints)
    work.codes[: len(codes)] = codes
    pairs.multiply_loss_grads(one, other, row, work, len(codes))
    pairs.bound_scores(one, other, row, work, len(codes))
    return work.bounds[: len(codes)].copy()


def all_pairs(test: Features, train: Features) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(len(test) * len(train)), len(train))


def run(
    test: Features, train: Features, scoring: Scoring, chunk: int | None = None, dense: bool = False
) -> Search:
    found = Search(test, scoring, dense)
    pairs = 0
    for start in range(0, len(train), chunk or max(1, len(train))):
        pairs += sum(found.scan(train.take(slice(start, start + (chunk or len(train))))))
    assert pairs == len(test) * len(train)
    assert sum(found.counts[name] for name in COUNTS[:4]) == pairs
    return found


def best(
    test: Features, train: Features, scoring: Scoring, chunk: int | None = None, dense: bool = False
):
    return run(test, train, scoring, chunk, dense).result()


@pytest.fixture(params=["sieves", "products", "whatever costs less"])
def way(request, monkeypatch) -> str:
    """Each way of the search, whatever the costs would say; and blocks so small that their borders
    are crossed.
    """
    if request.param == "sieves":
        monkeypatch.setattr(exact_search, "_TERM_COST", 0.0)
        monkeypatch.setattr(exact_search, "_EXACT_COST", 0.0)
    elif request.param == "products":
        monkeypatch.setattr(exact_search, "_HOPELESS", -1.0)
    monkeypatch.setattr(exact_search, "_GROUP_TESTS", 20)
    monkeypatch.setattr(exact_search, "_BLOCK_TESTS", 16)
    monkeypatch.setattr(exact_search, "_FOLLOWERS", 3)
    monkeypatch.setattr(exact_search, "_TRIED", 2)
    monkeypatch.setattr(exact_search, "_TRIED_OF", 4)
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
        found = run(test, train, scoring, chunk)
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
    assert_same(best(test, train, scoring, chunk=333), full_sort(test, train, scoring))


def test_examples_of_equal_score_come_in_the_order_of_their_ids(way):
    rng = np.random.default_rng(10)
    test, one = draw(rng, 5, 2, 3, 6), draw(rng, 1, 2, 3, 6)
    train = features(
        np.repeat(one.loss_grads, 3000, axis=0), np.repeat(one.activations, 3000, axis=0)
    ).take(rng.permutation(3000))
    for normalize in ("none", "cosine"):
        scoring = Scoring((0.1, 0.02), 7, normalize)
        assert_same(best(test, train, scoring, chunk=700), full_sort(test, train, scoring))


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


SHAPES = {
    "seed": st.integers(0, 2**32 - 1),
    "checkpoints": st.integers(1, 4),
    "outputs": st.integers(1, 40),
    "units": st.integers(1, 300),
    "scale": st.sampled_from([1e-36, 1e-20, 1.0, 1e18]),
}


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_the_margin_of_products_holds(seed, checkpoints, outputs, units, scale):
    # |float32 score − canonical score| ≤ margin, over N and the group's scale.
    rng = np.random.default_rng(seed)
    test, train = (
        draw(rng, 20, checkpoints, outputs, units, spread=3),
        draw(rng, 30, checkpoints, outputs, units, spread=3),
    )
    train = features(train.loss_grads * np.float32(scale), train.activations)
    rates = tuple(rng.uniform(0.01, 1, checkpoints))
    scoring = Scoring(rates, 1)
    nothing = exact_search._directions(train, none=True)
    tests, chunk = (
        exact_search._Tests(test, scoring, nothing),
        exact_search._Chunk(train, scoring, nothing),
    )
    norm = tests.factors.norm
    if not len(chunk) or norm.min() == 0:
        return
    loss_grads, activations = exact_search.scaled_rows(tests.factors, test, np.arange(20))
    made = np.full((50, GROUP_SIZE), np.nan, np.float32)
    products.multiply_rows(
        loss_grads, activations, 0, 20, chunk.groups.loss_grads, chunk.activations, 0, made
    )
    exact = canonical_scores(test, train, *all_pairs(test, train), scoring).reshape(20, 30)[
        :, chunk.columns
    ]
    exact /= norm[:, None] * chunk.groups.scales[0]
    assert (
        np.abs(made[:20, : len(chunk)].astype(np.float64) - exact)
        <= product_margin(checkpoints, outputs, units)
    ).all()


@settings(max_examples=60, deadline=None)
@given(
    twist=st.sampled_from(TWISTS),
    tolerance=st.sampled_from([0.0, 0.04, 0.5]),
    normalize=st.sampled_from(NORMALIZATIONS),
    **SHAPES,
)
def test_no_score_is_above_its_bounds(
    seed, checkpoints, outputs, units, scale, twist, tolerance, normalize
):
    rng = np.random.default_rng(seed)
    test, train = (
        draw(rng, 8, checkpoints, outputs, units, spread=2),
        draw(rng, 30, checkpoints, outputs, units, spread=2),
    )
    train = twisted(rng, features(train.loss_grads * np.float32(scale), train.activations), twist)
    scoring = Scoring(tuple(rng.uniform(0.01, 1, checkpoints)), 1, normalize)
    directions = exact_search._directions(train, none=False)
    tests, chunk = (
        exact_search._Tests(test, scoring, directions),
        exact_search._Chunk(train, scoring, directions),
    )
    norm = tests.factors.norm
    if not len(chunk) or norm.min() == 0:
        return
    terms = exact_search.find_terms(tests.factors, tolerance)
    groups = chunk.groups
    scores = canonical_scores(test, train, *all_pairs(test, train), scoring).reshape(8, 30)
    # Over N of the test example and the group's scale, as bounds are; of proponents and of
    # opponents.
    scores = (
        scores[:, chunk.columns]
        * tests.factors.divisors[:, None]
        / norm[:, None]
        / groups.scales[0]
    )
    margin = bound_margin(checkpoints, outputs)
    for i in range(8):
        for sketched in (False, True) if directions.size else (False,):
            cosines = (
                np.einsum("tr,trj->tj", tests.factors.sketches[i], groups.sketches[0])
                if sketched
                else None
            )
            found = np.empty((2, GROUP_SIZE), np.float32)
            bounds.bound_group(
                groups,
                0,
                terms,
                i,
                cosines.ctypes.data if sketched else 0,
                *(row.ctypes.data for row in found),
            )
            assert (scores[i] <= found[0, : len(chunk)].astype(np.float64) + margin).all()
            assert (-scores[i] <= found[1, : len(chunk)].astype(np.float64) + margin).all()
        found = np.empty((2, SUPERGROUP_SIZE), np.float32)
        bounds.bound_supergroup(groups, 0, terms, i, *(row.ctypes.data for row in found))
        assert scores[i].max() <= float(found[0, 0]) + 8 * margin
        assert -scores[i].min() <= float(found[1, 0]) + 8 * margin
        if directions.size:
            for direction, sign in ((1.0, 0), (-1.0, 1)):
                codes = 2 * chunk.columns.astype(np.int64) + sign
                listed = bounds_of_candidates(tests.factors, chunk.factors, i, codes)
                assert (
                    direction * scores[i] * norm[i] * groups.scales[0] <= np.maximum(listed, 0)
                ).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
@pytest.mark.parametrize("units", [49, 128, 353, 2048])
def test_lengths_outside_of_sketches_cover_all_errors(units, scale):
    # Activations that lie in the sketches' directions, so that nothing but errors is outside.
    rng = np.random.default_rng(units)
    basis = np.linalg.qr(rng.standard_normal((units, SKETCH)))[0]
    activations = (rng.standard_normal((300, 1, SKETCH)) @ basis.T * scale).astype(np.float32)
    train = features(rng.standard_normal((300, 1, 4)), activations)
    directions = exact_search._directions(train, none=False)
    assert directions.shape == (1, units, SKETCH_COLUMNS)
    factors = exact_search._factors(train, Scoring((0.1,), 1), False, directions)
    vectors = activations[:, 0].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sketches = factors.sketches[:, 0]
    errors = np.abs(vectors @ vectors.T - (sketches @ sketches.T).astype(np.float64))
    assert (errors <= np.outer(factors.rests, factors.rests)).all()
    outside = np.sqrt(np.maximum(0, 1 - np.square(sketches.astype(np.float64)).sum(1)))
    assert (errors > np.outer(outside, outside)).any()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 300])
def test_compiled_scores_are_the_canonical_ones_bit_for_bit(normalize, width):
    rng = np.random.default_rng(width)
    test, train = draw(rng, 13, 3, width, width + 1), draw(rng, 29, 3, width, width + 1)
    scoring = Scoring((0.1, 0.02, 0.003), 5, normalize)
    directions = exact_search._directions(train, none=True)
    sides = (
        exact_search._factors(test, scoring, scoring.divides_test, directions),
        exact_search._factors(train, scoring, scoring.divides_train, directions),
    )
    tests, trains = all_pairs(test, train)
    found = pairs.canonical_scores(*sides, np.asarray(scoring.learning_rates), tests, trains)
    assert found.tobytes() == canonical_scores(test, train, tests, trains, scoring).tobytes()


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
