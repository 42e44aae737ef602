"""The search by whole gradients against a full sort, and its cosines against their margin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import assert_same
from tests.transforms.scoring.test_gradients import (
    RATES,
    full_sort,
    positions,
    ragged,
    summed,
    whole,
)
from transforms.core.features import Features
from transforms.core.summation import lane_sum
from transforms.scoring.gradients import Gradients, cosine_margin, part_size
from transforms.scoring.influence import NORMALIZATIONS, Scoring
from transforms.scoring.search.gradient_search import (
    COUNTS,
    GradientSearch,
    multiply,
    unit_vectors,
)
from transforms.scoring.search.tuning import DEFAULT_GRADIENT_TUNING, GradientSearchTuning


def search(
    test: Gradients,
    chunks: Sequence[Gradients],
    scoring: Scoring,
    tuning: GradientSearchTuning = DEFAULT_GRADIENT_TUNING,
) -> GradientSearch:
    found = GradientSearch(test, scoring, tuning=tuning)
    pairs = sum(sum(found.scan(chunk)) for chunk in chunks)
    assert pairs == len(test) * sum(map(len, chunks))
    assert sum(found.counts[name] for name in COUNTS[:3]) == len(test) * sum(map(len, chunks))
    return found


def twisted(rng: np.random.Generator, train: Features, twist: str) -> Features:
    """Training examples that are hard to tell apart, or to represent."""
    loss_grads, activations = train.loss_grads.copy(), train.activations.copy()
    if twist == "duplicates":
        loss_grads[:], activations[:] = loss_grads[:1], activations[:1]
    elif twist == "near duplicates":
        loss_grads[:], activations[:] = (
            loss_grads[:1],
            activations[:1] * (1 + np.float32(1e-7) * rng.integers(-1, 2, (len(train), 1, 1))),
        )
    elif twist == "zeros":
        loss_grads[rng.random(len(train)) < 0.7] = 0
    elif twist == "cancelled":
        # Each position takes back the one before, but for rounding.
        loss_grads[1::2], activations[1::2] = (
            -loss_grads[:-1:2],
            activations[:-1:2] * np.float32(1 + 1e-7),
        )
    elif twist == "tiny":
        loss_grads *= np.float32(1e-38) / max(1e-30, np.abs(loss_grads).max())
        activations *= np.float32(1e-38)
    elif twist == "huge":
        loss_grads, activations = (
            one.astype(np.float64) * (1e38 / max(1e-30, float(np.abs(one).max())))
            for one in (loss_grads, activations)
        )
    return Features.of(
        train.example_ids,
        train.labels,
        train.predictions,
        train.probabilities,
        train.label_probabilities,
        loss_grads,
        activations,
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tests=st.integers(1, 8),
    trains=st.integers(1, 60),
    most=st.sampled_from([1, 2, 7]),
    checkpoints=st.integers(1, 3),
    outputs=st.sampled_from([1, 2, 5]),
    units=st.sampled_from([1, 3, 20]),
    more=st.integers(-60, 5),
    spread=st.sampled_from([0.0, 2.0, 8.0]),
    normalize=st.sampled_from(NORMALIZATIONS),
    twist=st.sampled_from(
        ["none", "duplicates", "near duplicates", "zeros", "cancelled", "tiny", "huge"]
    ),
    chunk=st.sampled_from([1, 7, 64]),
    group=st.sampled_from([1, 3, 256]),
)
def test_the_search_equals_a_full_sort(
    seed,
    tests,
    trains,
    most,
    checkpoints,
    outputs,
    units,
    more,
    spread,
    normalize,
    twist,
    chunk,
    group,
) -> None:
    rng = np.random.default_rng(seed)
    rates = 10.0 ** -rng.integers(0, 4, checkpoints)
    shape = (checkpoints, outputs, units)
    test = whole(positions(rng, ragged(rng, tests, most), *shape, spread=spread), rates)
    records = twisted(rng, positions(rng, ragged(rng, trains, most), *shape, spread=spread), twist)
    chunks, train = list(summed(records, rates, chunk)), whole(records, rates)
    scoring = Scoring(tuple(rates), max(1, trains + more), normalize)
    expected = full_sort(test, train, scoring)
    tuning = GradientSearchTuning(group_tests=group)
    for order in (chunks, chunks[::-1]):
        assert_same(search(test, order, scoring, tuning).result(), expected)


def test_weak_training_examples_are_not_multiplied_and_few_are_scored() -> None:
    rng = np.random.default_rng(4)
    test = whole(positions(rng, ragged(rng, 50, 5), 2, 3, 10), RATES[:2])
    records = positions(rng, ragged(rng, 3000, 5), 2, 3, 10, spread=3)
    scoring = Scoring(RATES[:2], 5)
    chunks = list(summed(records, RATES[:2], 500))
    found = search(test, chunks, scoring)
    assert_same(found.result(), full_sort(test, whole(records, RATES[:2]), scoring))
    assert found.counts["blocks"] > 50 * 3000 / 2
    assert found.counts["scored"] < 50 * 2 * 5 * len(chunks) + 50


def test_floors_of_another_search_hide_only_what_is_below_them() -> None:
    rng = np.random.default_rng(5)
    test = whole(positions(rng, ragged(rng, 9, 5), 2, 3, 10), RATES[:2])
    train = list(summed(positions(rng, ragged(rng, 200, 5), 2, 3, 10), RATES[:2], 50))
    scoring = Scoring(RATES[:2], 3)
    first = search(test, train, scoring)
    again = GradientSearch(test, scoring, first.floors)
    for chunk in train:
        assert list(again.scan(chunk)) == [9 * len(chunk)]
    assert_same(again.result(), first.result())
    assert again.counts["scored"] == 9 * 2 * 3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 255, 256, 257, 5000, 70_000]),
    spread=st.sampled_from([0.0, 3.0, 30.0]),
    likeness=st.sampled_from([0.0, 1e-7, 1.0]),
)
def test_cosines_are_within_their_margin(
    seed: int, size: int, spread: float, likeness: float
) -> None:
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(2, size)) * np.exp(spread * rng.normal(size=size))
    # From the same vector, whose terms all have one sign, to others.
    vectors = np.concatenate([one, one + likeness * rng.normal(size=(2, size)) * np.abs(one)])
    count = len(vectors)
    nothing = np.ones(count, int)
    products = np.array([lane_sum(vector * vectors) for vector in vectors])
    gradients = Gradients(
        np.arange(count).astype("S"),
        nothing,
        nothing,
        np.ones(count),
        vectors,
        np.diag(products).copy(),
    )
    units = unit_vectors(gradients, np.arange(count))
    lengths = np.sqrt(gradients.self_influence)
    assert part_size(size) >= 256
    error = np.abs(multiply(units, units) - products / np.outer(lengths, lengths)).max()
    assert error <= cosine_margin(size)
