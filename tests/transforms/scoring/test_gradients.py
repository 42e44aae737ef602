"""Sums of outer products, their canonical scores, and the search by them against a full sort."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import assert_same
from transforms.core.features import Features
from transforms.core.ids import example_of, record_id
from transforms.core.summation import lane_sum
from transforms.core.topk import Ranking, TopK
from transforms.scoring.gradients import (
    UNKNOWN,
    Gradients,
    Summing,
    canonical_scores,
    cosine_margin,
    part_size,
)
from transforms.scoring.influence import NORMALIZATIONS, Scoring
from transforms.scoring.search.gradient_search import (
    COUNTS,
    GradientSearch,
    multiply,
    unit_vectors,
)
from transforms.scoring.search.tuning import DEFAULT_GRADIENT_TUNING, GradientSearchTuning

RATES = (0.1, 0.02, 0.003)


def positions(
    rng: np.random.Generator,
    sizes: Sequence[int],
    checkpoints: int,
    outputs: int,
    units: int,
    prefix: str = "",
    spread: float = 1.0,
) -> Features:
    """Random records of examples with these numbers of positions; `spread` makes the gradients'
    norms heavy-tailed.
    """
    total = sum(sizes)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    scale = np.exp(rng.normal(size=len(sizes)) * spread)[owners, None, None]
    activations = np.maximum(rng.normal(size=(total, checkpoints, units)), 0)
    activations[..., -1] = 1
    # Some positions are masked, so that numbers are left out.
    ids = [
        record_id(f"{prefix}{i:04d}".encode(), 2 * a + 1)
        for i, n in enumerate(sizes)
        for a in range(n)
    ]
    labels, predictions = rng.integers(0, 3, (2, total, 1))
    probabilities = rng.random((total, checkpoints)).astype(np.float32)
    return Features.of(
        ids,
        labels,
        predictions,
        np.full(total, 0.5),
        probabilities,
        rng.normal(size=(total, checkpoints, outputs)) * scale,
        activations,
    )


def summed(
    records: Features, rates: Sequence[float], rows: int = 10**4, pieces: int = 10**6
) -> Iterator[Gradients]:
    """The gradients of records that come in pieces, of at most so many examples at a time."""
    summing = Summing(tuple(rates), rows)
    for start in range(0, len(records), pieces):
        yield from summing.add(records.take(slice(start, start + pieces)))
    yield summing.rest()


def whole(records: Features, rates: Sequence[float]) -> Gradients:
    (found,) = summed(records, rates)
    return found


def brute(
    test: Features, train: Features, scoring: Scoring
) -> tuple[np.ndarray, list[bytes], list[bytes]]:
    """Scores [n, m], by the definition: all pairs of positions, in float64, added in Python; and
    the ids.
    """
    owners = [[example_of(one) for one in side.example_ids.tolist()] for side in (test, train)]
    ids = [list(dict.fromkeys(one)) for one in owners]

    def add(one: int, other: int, sides: tuple[Features, Features]) -> np.ndarray:
        pairs = np.zeros((len(owners[one]), len(owners[other])))
        for t, rate in enumerate(scoring.learning_rates):
            deltas, inputs = (
                sides[0].__getattribute__(name)[:, t].astype(np.float64)
                @ sides[1].__getattribute__(name)[:, t].astype(np.float64).T
                for name in ("loss_grads", "activations")
            )
            pairs += rate * deltas * inputs
        total = np.zeros((len(ids[one]), len(ids[other])))
        rows, columns = (
            [ids[side].index(owner) for owner in owners[side]] for side in (one, other)
        )
        np.add.at(total, np.ix_(rows, columns), pairs)
        return total

    scores = add(0, 1, (test, train))
    own = [
        np.diag(add(side, side, (records, records))) for side, records in enumerate((test, train))
    ]
    divisor = np.ones_like(scores)
    if scoring.normalize != "none":
        divisor = np.sqrt(own[1])[None, :] * (
            np.sqrt(own[0])[:, None] if scoring.normalize == "cosine" else 1
        )
    return np.divide(scores, divisor, out=np.zeros_like(scores), where=divisor > 0), ids[0], ids[1]


def all_scores(test: Gradients, train: Gradients, scoring: Scoring) -> np.ndarray:
    tests, trains = np.divmod(np.arange(len(test) * len(train)), len(train))
    return canonical_scores(test, train, tests, trains, scoring).reshape(len(test), len(train))


def full_sort(test: Gradients, train: Gradients, scoring: Scoring) -> TopK:
    """The top k by sorting the canonical scores of all pairs with Python's own sort."""
    scores, found = all_scores(test, train, scoring), []
    for sign in (1, -1):
        pairs = [
            (i, j)
            for i in range(len(test))
            for j in sorted(
                (j for j in range(len(train)) if sign * scores[i, j] > 0),
                key=lambda j: (-sign * scores[i, j], train.example_ids[j]),
            )[: scoring.k]
        ]
        rows, columns = np.array(pairs, int).reshape(-1, 2).T
        found.append(
            Ranking(
                rows,
                scores[rows, columns],
                train.example_ids[columns],
                train.positions[columns, None],
            )
        )
    return TopK(*found)


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


def ragged(rng: np.random.Generator, examples: int, most: int) -> list[int]:
    return rng.integers(1, most + 1, examples).tolist()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_scores_are_sums_over_all_pairs_of_positions(normalize: str) -> None:
    rng = np.random.default_rng(1)
    test, train = (
        positions(rng, ragged(rng, n, 9), 3, 4, 7, prefix) for n, prefix in ((5, "a"), (12, "b"))
    )
    scoring = Scoring(RATES, 10, normalize)
    expected, *ids = brute(test, train, scoring)
    sides = whole(test, RATES), whole(train, RATES)
    assert [side.example_ids.tolist() for side in sides] == ids
    np.testing.assert_allclose(
        all_scores(*sides, scoring), expected, rtol=1e-11, atol=1e-13 * np.abs(expected).max()
    )
    own = all_scores(sides[1], sides[1], Scoring(RATES, 10))
    # An example's influence on itself is the very number that its rows tell.
    assert np.diag(own).tobytes() == sides[1].self_influence.tobytes()
    assert (own == own.T).all()


def test_the_order_of_additions_is_the_one_that_is_written_down() -> None:
    rng = np.random.default_rng(2)
    records = positions(rng, [3, 1, 8], 2, 3, 7, spread=3)
    found = whole(records, RATES[:2])
    vectors = np.zeros((3, 2, 3, 7))
    for r, i in enumerate([0] * 3 + [1] + [2] * 8):
        vectors[i] += (
            records.loss_grads[r, :, :, None].astype(np.float64)
            * records.activations[r, :, None, :]
        )
    vectors = (vectors * np.sqrt(RATES[:2])[:, None, None]).reshape(3, -1)
    assert found.vectors.tobytes() == vectors.tobytes()
    scores = all_scores(found, found, Scoring(RATES[:2], 1))
    assert scores.tobytes() == lane_sum(vectors[:, None] * vectors[None]).tobytes()


def test_what_is_told_of_an_example_is_of_its_positions() -> None:
    rng = np.random.default_rng(3)
    records = positions(rng, [2, 3], 2, 3, 4)
    records = dataclasses.replace(
        records,
        labels=np.array([[0], [1], [2], [1], [1]]),
        predictions=np.array([[0], [2], [2], [1], [0]]),
        label_probabilities=np.array(
            [[0.9, 0.5], [0.9, 0.25], [0.1, 1], [0.1, 0.5], [0.1, 0]], np.float32
        ),
    )
    found = whole(records, RATES[:2])
    assert found.example_ids.tolist() == [b"0000", b"0001"]
    assert (found.positions.tolist(), found.wrong.tolist(), found.label_probabilities.tolist()) == (
        [2, 3],
        [1, 1],
        [0.375, 0.5],
    )
    numbers = dataclasses.replace(
        records,
        labels=records.labels * 1.5,
        label_probabilities=np.full((5, 2), np.nan, np.float32),
    )
    found = whole(numbers, RATES[:2])
    assert found.wrong.tolist() == [UNKNOWN] * 2 and np.isnan(found.label_probabilities).all()
    # Lists of class indices, filled up with −1; that predictions need more room is no difference.
    lists = dataclasses.replace(
        records,
        labels=np.array([[0, 1], [1, -1], [-1, -1], [2, -1], [0, 2]]),
        predictions=np.array([[0, 1, -1], [0, 1, 2], [-1, -1, -1], [2, -1, -1], [0, 1, 2]]),
    )
    assert whole(lists, RATES[:2]).wrong.tolist() == [1, 1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    examples=st.integers(1, 12),
    rows=st.integers(1, 14),
    pieces=st.integers(1, 40),
)
def test_pieces_and_numbers_of_rows_change_no_bit(
    seed: int, examples: int, rows: int, pieces: int
) -> None:
    rng = np.random.default_rng(seed)
    records = positions(rng, ragged(rng, examples, 9), 2, 3, 5)
    expected, parts = whole(records, RATES[:2]), list(summed(records, RATES[:2], rows, pieces))
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1) and 0 < len(
        parts[-1]
    ) <= rows
    for field in dataclasses.fields(Gradients):
        joined = np.concatenate([getattr(part, field.name) for part in parts])
        assert joined.tobytes() == getattr(expected, field.name).tobytes(), field.name


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


def test_a_gradient_too_large_for_any_margin_is_refused() -> None:
    assert cosine_margin(4000) < 2e-5 and cosine_margin(10**7) < 5e-4
    with pytest.raises(
        ValueError, match="gradients of 10000000000000 numbers are too large to score"
    ):
        cosine_margin(10**13)


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
