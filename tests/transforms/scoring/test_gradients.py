"""Sums of outer products, and their canonical scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
)
from transforms.scoring.influence import NORMALIZATIONS, Scoring

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


def test_a_gradient_too_large_for_any_margin_is_refused() -> None:
    assert cosine_margin(4000) < 2e-5 and cosine_margin(10**7) < 5e-4
    with pytest.raises(
        ValueError, match="gradients of 10000000000000 numbers are too large to score"
    ):
        cosine_margin(10**13)
