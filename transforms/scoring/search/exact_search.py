"""The exact search for the k strongest proponents and opponents: pairs that cannot be among them
are skipped by proven bounds.

Training examples that are alike, strong in the same outputs and about as strong, lie together in
column groups (`layout`). A threshold is the k-th best score that is known so far; it starts with
pilots (`pilots`), and later chunks begin with the thresholds of the earlier ones. Bounds skip the
pairs that cannot reach it (`sieve_search`). Where a sample shows that they would let too many
through, a test example's products are all made in float32, and those within a proven margin of its
k-th are scored (`product_search`). Canonical scores alone decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from transforms.core.features import Features
from transforms.core.topk import Ranking, TopK, concatenate, cut
from transforms.scoring.influence import Scoring, self_influence
from transforms.scoring.search.layout import (
    ChunkLayout,
    TestLayout,
    no_directions,
    sketch_directions,
)
from transforms.scoring.search.pilots import Pilots
from transforms.scoring.search.pools import ChunkSearch, Part
from transforms.scoring.search.product_search import search_by_products
from transforms.scoring.search.sieve_search import is_worthwhile, search_by_sieves
from transforms.scoring.search.threads import threads
from transforms.scoring.search.tuning import DEFAULT_TUNING, SearchTuning
from transforms.scoring.thresholds import nth

# Names of `ExactSearch.counts`: pairs with a zero gradient, skipped in whole column groups, sieved
# by loss gradients, and multiplied whole, which are all; then those of them that were examined one
# by one, and scored.
COUNTS = ("zero", "blocks", "loss_gradients", "products", "examined", "scored")


class ExactSearch:
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
        test: Features,
        scoring: Scoring,
        dense: bool = False,
        floors: np.ndarray | None = None,
        tuning: SearchTuning = DEFAULT_TUNING,
    ) -> None:
        """Begins a search.

        Args:
            test: the test examples.
            scoring: what a score is, and k.
            dense: whether to make every product, whatever a sample says.
            floors: [2, n] scores, opponents' negated, below which nothing is looked for: k training
                examples are known to reach them, as another search found among training examples
                of the same set, or estimated to (`thresholds`).
            tuning: sizes and thresholds of heuristics.
        """
        self._test = test
        self._scoring = scoring
        self._dense = dense
        self._tuning = tuning
        # Without a gradient there are neither proponents nor opponents.
        self._alive = self_influence(test, scoring.learning_rates) > 0
        self._tests: TestLayout | None = None
        self.floors = np.zeros((2, len(test))) if floors is None else floors.copy()
        self._best: list[Ranking | None] = [None, None]
        self.counts = dict.fromkeys(COUNTS, 0)

    def scan(self, train: Features) -> Iterator[int]:
        """Searches a chunk of training examples; yields numbers of pairs as they are done, which
        add up to all of them.
        """
        tests = self._lay_out_tests(train)
        chunk = ChunkLayout(train, self._scoring, tests.directions)
        pairs, alive = len(self._test) * len(train), int(self._alive.sum())
        self.counts["zero"] += pairs - alive * len(chunk)
        if not len(chunk) or not alive:
            yield pairs
            return
        search = ChunkSearch(tests, chunk, self._alive, self.floors, self._scoring, self._tuning)
        left, parts = self._alive.copy(), list[Part]()
        pilots = None if self._dense else Pilots(search)
        if pilots and self._try_sieves(search, pilots):
            for part in search_by_sieves(search, pilots):
                parts.append(part)
                left[part.rows] = part.left
                yield int((~part.left).sum()) * len(train)
        else:
            yield (len(left) - alive) * len(train)
        for rows in search.cut_rows(np.flatnonzero(left), self._tuning.product_tests, 1):
            parts.append((yield from search_by_products(search, rows)))
            yield len(rows) * (len(train) - len(chunk))
        for part in parts:
            self._count(part.counts)
        self._take(parts, train)

    def _lay_out_tests(self, train: Features) -> TestLayout:
        """Lays out the test examples, only now that training examples are there: they say in which
        directions activations are worth a sketch.
        """
        if self._tests is None:
            directions = (
                no_directions(train) if self._dense else sketch_directions(train, self._tuning)
            )
            norm = self._tuning.left_out_norm
            self._tests = TestLayout(self._test, self._scoring, directions, norm)
        return self._tests

    def _try_sieves(self, search: ChunkSearch, pilots: Pilots) -> bool:
        worthwhile, counts = is_worthwhile(search, pilots)
        self._count(counts)
        return worthwhile

    def _count(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.counts[name] += count

    def _take(self, parts: Sequence[Part], train: Features) -> None:
        """Merges the best of a chunk with those before, and raises the floors."""

        def merge(sign: int) -> Ranking:
            rows, scores, trains = (
                np.concatenate(arrays)
                for arrays in zip(*(part.best[sign] for part in parts), strict=True)
            )
            order = _order_of_runs(rows, len(self._test))
            trains = trains[order]
            best = Ranking(
                rows[order], scores[order], train.example_ids[trains], train.labels[trains]
            )
            before = self._best[sign]
            if before is not None:
                best = cut(concatenate([before, best]), self._scoring.k)
            self.floors[sign] = np.maximum(
                self.floors[sign], nth(best, len(self._test), self._scoring.k)
            )
            return best

        self._best = list(threads().map(merge, range(2)))

    def result(self) -> TopK:
        """Returns the top k of all chunks; rows are those of the test examples."""
        empty = Ranking(
            np.empty(0, np.int32), np.empty(0), np.empty(0, "S1"), self._test.labels[:0]
        )
        return TopK(*(best if best is not None else empty for best in self._best))


def _order_of_runs(rows: np.ndarray, n: int) -> np.ndarray:
    """Returns the order that sorts `rows`, of 0 to n, in which equal rows already lie together; a
    run's own order is kept.
    """
    counts = np.bincount(rows, minlength=n)
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    # The index at which each run goes, less the index at which it lies.
    shift = (np.cumsum(counts) - counts)[rows[first]] - first
    order = np.empty(len(rows), np.int64)
    indices = np.arange(len(rows))
    order[indices + np.repeat(shift, np.diff(first, append=len(rows)))] = indices
    return order
