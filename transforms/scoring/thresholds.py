"""Thresholds: estimating the k-th best score of a training set from a part of it.

A threshold is proven where k training examples reach it. Parts that are searched apart, on
different workers, would each have to find a threshold of their own. The k-th best of the first part
is proven, and low: the k-th best of all lies far above that of each of many parts. But if the first
part is a sample like any other, with a share s of the training set, it holds about `k s` of the k
best of all, and seldom many more. So its score of a rank that it is next to impossible for so many
of them to reach is an estimate of the k-th best of all, and seldom too high.

A result by an estimate is checked. Where k training examples reach the estimate, all that could be
among the k best were looked for, and the result is proven. Where they do not, as in a training set
that is sorted by class, the test example is searched once more, by the k-th best score found, which
is proven.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.core.topk import Ranking, TopK

# An estimate assumes that the first part holds no more of the k best than so many standard
# deviations above the mean, and so many examples more: so rare that in a block of ten thousand test
# examples none is to be searched again.
_DEVIATIONS, _MORE = 5.0, 3


def nth(ranking: Ranking, tests: int, n: int) -> np.ndarray:
    """Returns the n-th best |score| of each test example, 0 where there are fewer: [tests]
    float64.
    """
    starts = ranking.offsets(tests)
    scores = np.zeros(tests)
    full = np.flatnonzero(np.diff(starts) >= n)
    scores[full] = np.abs(ranking.scores[starts[full] + n - 1])
    return scores


def proven(best: TopK, tests: int, k: int) -> np.ndarray:
    """Returns the k-th best |score| of each sign, which k training examples reach, 0 where there
    are fewer: [2, tests] float64.
    """
    return np.stack([nth(ranking, tests, k) for ranking in (best.proponents, best.opponents)])


def estimated(first: TopK, tests: int, k: int, share: float) -> np.ndarray:
    """Estimates the k-th best |score| of all training examples, seldom too high: [2, tests]
    float64, 0 where there is no estimate.

    `first` is the best of a part that holds a share of them, above 0 and at most 1.
    """
    rank = math.ceil(k * share + _DEVIATIONS * math.sqrt(k * share * (1 - share))) + _MORE
    return proven(first, tests, min(rank, k))


def unproven(best: TopK, tests: int, k: int, estimates: np.ndarray) -> np.ndarray:
    """Returns the rows, ascending, of test examples that were searched by too high estimates [2,
    tests].
    """
    return np.flatnonzero((proven(best, tests, k) < estimates).any(axis=0))
