"""The search for the k strongest by whole gradients: products in float64, then canonical scores of what they leave.

Products of a block of test examples with a chunk of training examples come from the linear algebra library, in whatever order it adds.
They are off by at most a proven margin (`gradients`), so the k-th of them, less the margin, is a score that k training examples reach,
and who is further below than another margin is not among the k best. The others are scored canonically; those scores alone decide.

Training examples come to a product the strongest first, and those too weak for all of some test examples, by Cauchy–Schwarz, not at all.
"""

from __future__ import annotations

import numpy as np

from transforms.gradients import Gradients, canonical_scores, product_margin
from transforms.scoring import Scoring
from transforms.topk import Ranking, TopK, concatenate, cut

# What the products of a group of test examples with a chunk may take, and how many test examples a group has at most: few, since what the
# neediest of them needs is multiplied for all, but enough for products of matrices to be fast.
_PRODUCT_BYTES, _GROUP_TESTS = 32 << 20, 256

# Candidates of a group that are held at once.
_CANDIDATES = 1_000_000

# What `GradientSearch.counts` tells of pairs: those with a zero gradient, skipped by their norms, and multiplied, which are all; then how
# many were scored.
COUNTS = ("zero", "blocks", "products", "scored")


class GradientSearch:
    """The k strongest proponents and opponents of some test examples, among training examples that come in chunks.

    Exact: `result` is what sorting the canonical scores of all pairs would give, for any chunks in any order.

    Attributes:
        counts: what became of the pairs; see `COUNTS`.
        floors: [2, n] the k-th best score known so far, opponents' negated, or 0.
    """

    def __init__(self, test: Gradients, scoring: Scoring, floors: np.ndarray | None = None) -> None:
        """`floors` are known from other training examples of the same set; what is below them is not looked for."""
        self._test = test
        self._scoring = scoring
        self._margin = product_margin(test.vectors.shape[1])
        self._inverses, self._strengths = _scales(test.self_influence, scoring.divides_test)
        self.floors = np.zeros((2, len(test))) if floors is None else floors.copy()
        self._best: list[Ranking | None] = [None, None]
        self.counts = dict.fromkeys(COUNTS, 0)

    def scan(self, train: Gradients) -> None:
        """Searches a chunk of training examples (at least one)."""
        inverses, strengths = _scales(train.self_influence, self._scoring.divides_train)
        columns = np.argsort(-strengths, kind="stable")[: np.count_nonzero(train.self_influence > 0)]
        alive = np.flatnonzero(self._test.self_influence > 0)
        self.counts["zero"] += len(self._test) * len(train) - len(alive) * len(columns)
        if not len(columns):
            return
        vectors, inverses, strengths = train.vectors[columns], inverses[columns], strengths[columns]
        found: list[list[Ranking]] = [[], []]
        most = min(_PRODUCT_BYTES // (8 * len(columns)), _CANDIDATES // self._scoring.k, _GROUP_TESTS)
        step = max(1, most)
        for start in range(0, len(self._test), step):
            rows = np.arange(start, min(start + step, len(self._test)))
            living = self._test.self_influence[rows] > 0
            # Who needs less than this of a training example's strength could be among its best.
            needed = self.floors[:, rows].min(axis=0)[living] / (self._strengths[rows][living] * (1 + self._margin))
            count = int(np.count_nonzero(strengths >= needed.min(initial=np.inf)))
            self.counts["blocks"] += int(living.sum()) * (len(columns) - count)
            self.counts["products"] += int(living.sum()) * count
            if count:
                products = self._test.vectors[start : rows[-1] + 1] @ vectors[:count].T
                products *= self._inverses[rows, None]
                products *= inverses[:count]
                for sign, direction in enumerate((1, -1)):
                    # In place: opponents are the best of the negated.
                    products *= direction
                    chosen = self._candidates(products, rows, living, sign, float(strengths[0]))
                    found[sign].append(self._score(train, rows[chosen[0]], columns[chosen[1]], sign))
        self._take(found)

    def _candidates(
        self, products: np.ndarray, rows: np.ndarray, living: np.ndarray, sign: int, strongest: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of products [g, m] of a sign may be of the k best of the test examples `rows`: places in both axes."""
        k, count = self._scoring.k, products.shape[1]
        margins = self._margin * self._strengths[rows] * strongest
        limits = np.where(living, self.floors[sign, rows] - margins, np.inf)
        passing = products >= limits[:, None]
        many = np.flatnonzero(passing.sum(axis=1) > k)
        if len(many):
            proven = np.partition(products[many], count - k, axis=1)[:, count - k] - margins[many]
            limits[many] = np.maximum(limits[many], proven - margins[many])
            passing[many] = products[many] >= limits[many, None]
        places, chosen = np.nonzero(passing)
        return places, chosen

    def _score(self, train: Gradients, tests: np.ndarray, trains: np.ndarray, sign: int) -> Ranking:
        """The candidates of a sign by their canonical scores; those that have the other sign, or are below the floor, are left out."""
        scores = canonical_scores(self._test, train, tests, trains, self._scoring)
        self.counts["scored"] += len(scores)
        sizes = np.abs(scores)
        right = (scores < 0 if sign else scores > 0) & (sizes >= self.floors[sign, tests])
        trains = trains[right]
        return Ranking(tests[right].astype(np.int32), scores[right], train.example_ids[trains], train.positions[trains, None])

    def _take(self, found: list[list[Ranking]]) -> None:
        """Merges what was found in a chunk with what was known before, and raises the floors."""
        k = self._scoring.k
        for sign, before in enumerate(self._best):
            parts = [*([] if before is None else [before]), *found[sign]]
            if not parts:
                continue
            best = cut(concatenate(parts), k)
            self._best[sign] = best
            starts = best.offsets(len(self._test))
            full = np.flatnonzero(np.diff(starts) >= k)
            self.floors[sign, full] = np.maximum(self.floors[sign, full], np.abs(best.scores[starts[full] + k - 1]))

    def result(self) -> TopK:
        """The top k of what was scanned, rows being those of the test examples; a candidate's label is its number of positions."""
        empty = Ranking(np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), np.empty((0, 1), np.int64))
        return TopK(*(best if best is not None else empty for best in self._best))


def _scales(self_influence: np.ndarray, divides: bool) -> tuple[np.ndarray, np.ndarray]:
    """What vectors are multiplied with by normalisation, and how long they are then: [n] each."""
    lengths = np.sqrt(self_influence)
    if not divides:
        return np.ones_like(lengths), lengths
    return np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0), (lengths > 0).astype(np.float64)
