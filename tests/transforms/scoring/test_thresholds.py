"""Thresholds that are estimated from a part of the training set."""

from __future__ import annotations

import numpy as np
import pytest

from transforms.core import topk
from transforms.core.topk import Ranking, TopK
from transforms.scoring import thresholds


def best_of(scores: np.ndarray, k: int, first: int = 0) -> TopK:
    """The k best of scores [tests, trains], whose training examples are numbered from `first`."""

    def ranking(sign: int) -> Ranking:
        rows, columns = np.nonzero(sign * scores > 0)
        ids = np.char.mod("%08d", columns + first).astype("S8")
        return topk.cut(
            Ranking(rows.astype(np.int32), scores[rows, columns], ids, columns[:, None]), k
        )

    return TopK(ranking(1), ranking(-1))


def test_the_nth_best_is_counted_from_the_best_and_0_where_there_are_fewer():
    best = best_of(
        np.array([[3.0, 1.0, 2.0, -5.0], [-1.0, -2.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]), 3
    )
    assert thresholds.nth(best.proponents, 3, 1).tolist() == [3, 4, 0]
    assert thresholds.nth(best.proponents, 3, 3).tolist() == [1, 0, 0]
    assert thresholds.proven(best, 3, 2).tolist() == [[2, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("k", "parts"), [(50, 2), (50, 8), (50, 64), (1, 4), (10, 100), (1000, 16)]
)
def test_an_estimate_is_seldom_too_high_and_nearly_as_high_as_the_threshold(k, parts):
    rng = np.random.default_rng(k + parts)
    scores = rng.standard_t(3, (200, 20_000))
    first = scores[:, : scores.shape[1] // parts]
    estimates = thresholds.estimated(best_of(first, k), 200, k, 1 / parts)
    true, own = (
        thresholds.proven(best_of(scores, k), 200, k),
        thresholds.proven(best_of(first, k), 200, k),
    )
    assert (estimates <= true).all()
    assert (estimates >= own).all()
    if parts > 2 and k > 10:
        # As much of the way from the first part's threshold to that of all as makes it worth the
        # while.
        assert np.median((estimates - own) / (true - own)) > 0.25


def test_of_the_whole_the_estimate_is_the_threshold():
    scores = np.random.default_rng(0).normal(size=(20, 300))
    best = best_of(scores, 7)
    assert (
        thresholds.estimated(best, 20, 7, 1.0).tolist() == thresholds.proven(best, 20, 7).tolist()
    )


def test_what_was_found_by_too_high_an_estimate_is_not_proven():
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0, -1.0, -2.0]] * 3)
    estimates = np.array([[3.0, 3.5, 0.0], [0.0, 0.0, 2.0]])
    found = np.where(
        np.where(scores > 0, scores >= estimates[0][:, None], -scores >= estimates[1][:, None]),
        scores,
        0,
    )
    # Three reach 3; only two reach 3.5; of the third, only one opponent was looked for.
    assert thresholds.unproven(best_of(found, 3), 3, 3, estimates).tolist() == [1, 2]
    assert thresholds.unproven(best_of(scores, 3), 3, 3, np.zeros((2, 3))).tolist() == []


def test_candidates_of_some_test_examples_are_told_from_those_of_others():
    best = best_of(np.random.default_rng(1).normal(size=(4, 9)), 2)
    some = best_of(np.random.default_rng(2).normal(size=(2, 9)), 2).of_rows(np.array([1, 3]))
    assert set(some.proponents.rows) == {1, 3}
    kept = best.without(np.array([1, 3]))
    assert set(kept.opponents.rows) == {0, 2}
    both = topk.merge([kept, some], 2)
    assert sorted(set(both.proponents.rows)) == [0, 1, 2, 3]
