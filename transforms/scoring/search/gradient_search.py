"""The search for the k strongest by whole gradients: products in float32, then canonical scores of
the pairs that they leave.

Gradients are divided by their lengths. A score is then a cosine times the strengths of both sides:
their lengths, or 1 where normalisation divides by them. The linear algebra library makes the
cosines of a group of test examples with a chunk of training examples, in parts of their sums that
are added up one after the other. They are off by at most a proven margin
(`gradients.cosine_margin`), so each gives a lower and an upper bound of a score. The k-th of the
lower ones is a score that k training examples reach; a pair whose upper bound is below it is not
among the k best. The others are scored canonically, and those scores alone decide.

Training examples come to a product the strongest first, and those too weak for all of some test
examples, by Cauchy–Schwarz, not at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transforms.core.topk import Ranking, TopK, concatenate, cut
from transforms.scoring.gradients import Gradients, canonical_scores, cosine_margin, part_size
from transforms.scoring.influence import Scoring
from transforms.scoring.search.threads import threads
from transforms.scoring.search.tuning import DEFAULT_GRADIENT_TUNING, GradientSearchTuning
from transforms.scoring.thresholds import nth

# Candidates that a thread scores at a time.
_SCORED = 64

# Numbers that are divided at once, before they are rounded to float32.
_DIVIDED = 1 << 21

# The error of rounding to float32, over the number; and a limit, over the largest possible score,
# below which no float32 is trusted.
_ROUNDING, _LEAST_LIMIT = 2.0**-24, 1e-30

# Names of `GradientSearch.counts`: pairs with a zero gradient, skipped by their norms, and
# multiplied, which are all; then those of them that were scored.
COUNTS = ("zero", "blocks", "products", "scored")


class GradientSearch:
    """The k strongest proponents and opponents of some test examples, among training examples that
    come in chunks.

    Exact: `result` is what sorting the canonical scores of all pairs would give, for any chunks in
    any order.

    Attributes:
        counts: pairs by the way in which they were decided; see `COUNTS`.
        floors: [2, n] the k-th best score known so far, opponents' negated, or 0.
    """

    def __init__(
        self,
        test: Gradients,
        scoring: Scoring,
        floors: np.ndarray | None = None,
        tuning: GradientSearchTuning = DEFAULT_GRADIENT_TUNING,
    ) -> None:
        """Begins a search.

        Args:
            test: the test examples.
            scoring: what a score is, and k.
            floors: [2, n] scores, opponents' negated, below which nothing is looked for: k training
                examples of the same set reach them.
            tuning: sizes.
        """
        self._test = test
        self._scoring, self._tuning = scoring, tuning
        # The second term is for the few operations that follow a cosine.
        self._margin = cosine_margin(test.vectors.shape[1]) + 8 * _ROUNDING
        # Without a gradient there are neither proponents nor opponents.
        self._alive = np.flatnonzero(test.self_influence > 0)
        self._units = unit_vectors(test, self._alive)
        self._strengths = _strengths(test, scoring.divides_test)
        self.floors = np.zeros((2, len(test))) if floors is None else floors.copy()
        self._best: list[Ranking | None] = [None, None]
        self.counts = dict.fromkeys(COUNTS, 0)

    def scan(self, train: Gradients) -> Iterator[int]:
        """Searches a chunk of training examples; yields the number of pairs, once they are done."""
        self._scan(train)
        yield len(self._test) * len(train)

    def _scan(self, train: Gradients) -> None:
        strengths = _strengths(train, self._scoring.divides_train)
        columns = np.argsort(-strengths, kind="stable")[
            : np.count_nonzero(train.self_influence > 0)
        ]
        self.counts["zero"] += len(self._test) * len(train) - len(self._alive) * len(columns)
        if not len(columns):
            return
        units, strengths = unit_vectors(train, columns), strengths[columns]
        strongest = float(strengths[0])
        # Rounded up.
        weights = np.nextafter((strengths / strongest).astype(np.float32), np.float32(np.inf))
        rankings: list[list[Ranking]] = [[], []]
        step = self._group_size(len(columns))
        for start in range(0, len(self._alive), step):
            rows = self._alive[start : start + step]
            # Floors over the largest possible score with this chunk.
            floors = self.floors[:, rows] / (self._strengths[rows] * strongest)
            count = int(np.count_nonzero(weights * (1 + self._margin) >= floors.min()))
            self.counts["blocks"] += len(rows) * (len(columns) - count)
            self.counts["products"] += len(rows) * count
            if count:
                cosines = multiply(self._units[start : start + step], units[:count])
                for sign, direction in enumerate((1, -1)):
                    tests, trains = self._candidates(
                        cosines, direction, weights[:count], floors[sign]
                    )
                    ranking = self._score(train, rows[tests], columns[trains], sign)
                    rankings[sign].append(ranking)
        self._take(rankings)

    def _group_size(self, columns: int) -> int:
        """Returns how many test examples are multiplied with so many columns at once."""
        tuning = self._tuning
        by_memory = tuning.product_bytes // (4 * columns)
        by_candidates = tuning.candidates // self._scoring.k
        return max(1, min(by_memory, by_candidates, tuning.group_tests))

    def _candidates(
        self, cosines: np.ndarray, sign: int, weights: np.ndarray, floors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pairs that may be among the k best of a sign, 1 or −1: indices in both axes
        of cosines [g, m].

        `weights` [m] are strengths over that of the strongest training example; `floors` [g] are
        likewise scaled.
        """
        k, margin = self._scoring.k, np.float32(self._margin)
        bounds = (cosines + margin if sign > 0 else margin - cosines) * weights
        passing = bounds >= _rounded_down(floors)[:, None]
        many = np.flatnonzero(passing.sum(axis=1) > k)
        if len(many):
            lower = bounds[many] - weights * np.float32(2 * self._margin + 8 * _ROUNDING)
            proven = np.partition(lower, len(weights) - k, axis=1)[:, len(weights) - k]
            limits = _rounded_down(np.maximum(floors[many], proven))
            passing[many] = bounds[many] >= limits[:, None]
        tests, trains = np.nonzero(passing)
        return tests, trains

    def _score(self, train: Gradients, tests: np.ndarray, trains: np.ndarray, sign: int) -> Ranking:
        """Scores the candidates of a sign; leaves out those that have the other sign, or are below
        the floor.
        """

        def score(start: int) -> np.ndarray:
            some = slice(start, start + _SCORED)
            return canonical_scores(self._test, train, tests[some], trains[some], self._scoring)

        # Compiled and without Python's lock, so that threads share them.
        scored = threads().map(score, range(0, len(tests), _SCORED))
        scores = np.concatenate([np.empty(0), *scored])
        self.counts["scored"] += len(scores)
        right = (scores < 0 if sign else scores > 0) & (np.abs(scores) >= self.floors[sign, tests])
        trains = trains[right]
        return Ranking(
            tests[right].astype(np.int32),
            scores[right],
            train.example_ids[trains],
            train.positions[trains, None],
        )

    def _take(self, rankings: list[list[Ranking]]) -> None:
        """Merges the rankings of a chunk with those before, and raises the floors."""
        k = self._scoring.k
        for sign, before in enumerate(self._best):
            parts = [*([] if before is None else [before]), *rankings[sign]]
            if not parts:
                continue
            best = cut(concatenate(parts), k)
            self._best[sign] = best
            self.floors[sign] = np.maximum(self.floors[sign], nth(best, len(self._test), k))

    def result(self) -> TopK:
        """Returns the top k of all chunks, rows being those of the test examples; a candidate's
        label is its number of positions.
        """
        empty = Ranking(
            np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), np.empty((0, 1), np.int64)
        )
        return TopK(*(best if best is not None else empty for best in self._best))


def _strengths(gradients: Gradients, divides: bool) -> np.ndarray:
    """Returns the lengths of gradients once they are normalised: [n] float64."""
    lengths = np.sqrt(gradients.self_influence)
    return (lengths > 0).astype(np.float64) if divides else lengths


def unit_vectors(gradients: Gradients, rows: np.ndarray) -> np.ndarray:
    """Returns the gradients of some rows [m], none of them zero, over their lengths: [m, K]
    float32.
    """
    size = gradients.vectors.shape[1]
    lengths = np.sqrt(gradients.self_influence)
    units = np.empty((len(rows), size), np.float32)
    step = max(1, _DIVIDED // max(1, size))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        part = np.take(gradients.vectors, some, axis=0)
        part /= lengths[some, None]
        units[start : start + step] = part
    return units


def multiply(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Returns the cosines [g, m] float32 of unit vectors [g, K] and [m, K], in parts as
    `gradients.cosine_margin` takes them to be added.
    """
    size = part_size(test.shape[1])
    cosines = test[:, :size] @ train[:, :size].T
    for start in range(size, test.shape[1], size):
        cosines += test[:, start : start + size] @ train[:, start : start + size].T
    return cosines


def _rounded_down(limits: np.ndarray) -> np.ndarray:
    """Returns limits as float32, rounded down; and 0 for the smallest, since float32 numbers that
    small are not exact.
    """
    return np.where(limits < _LEAST_LIMIT, 0, limits * (1 - 4 * _ROUNDING)).astype(np.float32)
