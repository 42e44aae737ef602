"""Cutting and merging rankings."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import assert_same
from transforms.core.topk import Ranking, TopK, concatenate, cut, merge


def ranking(candidates: list[tuple[int, float, str]]) -> Ranking:
    return Ranking(
        np.array([row for row, _, _ in candidates], np.int32),
        np.array([score for _, score, _ in candidates], np.float64),
        np.array([name.encode() for _, _, name in candidates], np.bytes_)
        if candidates
        else np.empty(0, "S1"),
        np.array([[len(name)] for _, _, name in candidates], np.int64).reshape(len(candidates), 1),
    )


# Few distinct scores, so that ties are common.
CANDIDATES = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([0.5, 1.0, 1.0 + 2**-52, 3.0]),
        st.text("abcé", min_size=1, max_size=3),
    ),
    max_size=60,
    unique_by=lambda candidate: (candidate[0], candidate[2]),
)


def by_hand(candidates: list[tuple[int, float, str]], k: int) -> list[tuple[int, float, bytes]]:
    best = []
    for row in range(5):
        mine = [(-abs(score), name.encode(), score) for r, score, name in candidates if r == row]
        best += [(row, score, name) for _, name, score in sorted(mine)[:k]]
    return best


def listed(ranked: Ranking) -> list[tuple[int, float, bytes]]:
    return list(zip(ranked.rows.tolist(), ranked.scores.tolist(), ranked.ids.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(CANDIDATES, st.integers(1, 70), st.sampled_from([1, -1]))
def test_cut_is_a_sort_by_score_and_id(candidates, k, sign):
    signed = [(row, sign * score, name) for row, score, name in candidates]
    assert listed(cut(ranking(signed), k)) == by_hand(signed, k)


@settings(max_examples=100, deadline=None)
@given(CANDIDATES, st.integers(1, 12), st.lists(st.integers(0, 60), max_size=4), st.randoms())
def test_merging_cuts_in_any_grouping_gives_the_cut_of_all(candidates, k, borders, random):
    random.shuffle(candidates)
    edges = [0, *sorted(border for border in borders if border <= len(candidates)), len(candidates)]
    parts = [cut(ranking(candidates[a:b]), k) for a, b in itertools.pairwise(edges)]
    nothing = ranking([])
    merged = merge([TopK(part, nothing) for part in parts], k)
    assert_same(merged, TopK(cut(ranking(candidates), k), nothing))
    pairwise = merge(
        [
            merge([TopK(part, nothing) for part in parts[:2]], k),
            *[TopK(part, nothing) for part in parts[2:]],
        ],
        k,
    )
    assert_same(pairwise, merged)


def test_labels_of_different_widths_are_padded():
    wide = Ranking(np.array([0], np.int32), np.array([2.0]), np.array([b"a"]), np.array([[3, 5]]))
    narrow = Ranking(np.array([0], np.int32), np.array([1.0]), np.array([b"bb"]), np.array([[4]]))
    assert concatenate([wide, narrow]).labels.tolist() == [[3, 5], [4, -1]]
    assert cut(concatenate([narrow, wide]), 5).labels.tolist() == [[3, 5], [4, -1]]


def test_offsets_are_where_each_test_example_starts():
    assert cut(ranking([(0, 1.0, "a"), (3, 1.0, "b"), (3, 2.0, "c")]), 5).offsets(5).tolist() == [
        0,
        1,
        1,
        1,
        3,
        3,
    ]


def test_rows_can_be_renamed_and_left_out():
    best = TopK(ranking([(0, 2.0, "a"), (1, 1.0, "b")]), ranking([(1, -1.0, "c")]))
    renamed = best.of_rows(np.array([3, 7]))
    assert renamed.proponents.rows.tolist() == [3, 7]
    assert renamed.opponents.rows.tolist() == [7]
    assert renamed.proponents.rows.dtype == np.int32
    left = renamed.without(np.array([7]))
    assert listed(left.proponents) == [(3, 2.0, b"a")] and listed(left.opponents) == []
