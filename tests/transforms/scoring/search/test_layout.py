"""Bounds of examples that are laid out, and compiled scores against their definition."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import draw, features
from tests.transforms.scoring.search.test_exact_search import TWISTS, twisted
from transforms.core.features import Features
from transforms.scoring.error_bounds import bound_margin, product_margin
from transforms.scoring.influence import NORMALIZATIONS, Scoring, canonical_scores
from transforms.scoring.kernels import bounds, layout, pairs, products
from transforms.scoring.kernels.layout import SUPERGROUP_SIZE
from transforms.scoring.kernels.register_tiles import SKETCH, SKETCH_COLUMNS
from transforms.scoring.kernels.simd import GROUP_SIZE
from transforms.scoring.search.layout import (
    ChunkLayout,
    TestLayout,
    factors_of,
    find_terms,
    no_directions,
    scaled_rows,
    score_pairs,
    sketch_directions,
)


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
    nothing = no_directions(train)
    tests, chunk = (
        TestLayout(test, scoring, nothing),
        ChunkLayout(train, scoring, nothing),
    )
    norm = tests.factors.norm
    if not len(chunk) or norm.min() == 0:
        return
    loss_grads, activations = scaled_rows(tests.factors, test, np.arange(20))
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
    directions = sketch_directions(train)
    tests, chunk = (
        TestLayout(test, scoring, directions),
        ChunkLayout(train, scoring, directions),
    )
    norm = tests.factors.norm
    if not len(chunk) or norm.min() == 0:
        return
    terms = find_terms(tests.factors, tolerance)
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
    directions = sketch_directions(train)
    assert directions.shape == (1, units, SKETCH_COLUMNS)
    factors = factors_of(train, Scoring((0.1,), 1), False, directions)
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
    directions = no_directions(train)
    sides = (
        factors_of(test, scoring, scoring.divides_test, directions),
        factors_of(train, scoring, scoring.divides_train, directions),
    )
    tests, trains = all_pairs(test, train)
    found = pairs.canonical_scores(*sides, np.asarray(scoring.learning_rates), tests, trains)
    assert found.tobytes() == canonical_scores(test, train, tests, trains, scoring).tobytes()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_scores_on_all_cores_are_the_canonical_ones(normalize):
    rng = np.random.default_rng(3)
    test, train = draw(rng, 7, 2, 3, 5), draw(rng, 19, 2, 3, 5)
    scoring = Scoring((0.1, 0.02), 5, normalize)
    chosen = rng.integers(0, 7, 200), rng.integers(0, 19, 200)
    expected = canonical_scores(test, train, *chosen, scoring)
    assert score_pairs(test, train, *chosen, scoring).tobytes() == expected.tobytes()
