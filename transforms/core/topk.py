"""The k best candidates of each test example: their arrays, cutting, and merging.

The order is by score, best first, and between equal scores by train id, ascending as UTF-8 bytes.
It is total, so cutting and merging in any grouping give the same arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from transforms.core.features import concatenate_labels


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates of one sign of n test examples, P in all, ordered by (test row, rank).

    Attributes:
        rows: [P] int32, row of the test example, 0..n−1.
        scores: [P] float64.
        ids: [P] byte strings (dtype S), the train ids.
        labels: [P, L], the train labels.
    """

    rows: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> Ranking:
        """Returns some of the candidates, by index array or mask."""
        return Ranking(
            self.rows[chosen], self.scores[chosen], self.ids[chosen], self.labels[chosen]
        )

    def offsets(self, n: int) -> np.ndarray:
        """Returns the index of the first candidate of each of n test examples, and P: [n + 1]."""
        return np.searchsorted(self.rows, np.arange(n + 1))


@dataclasses.dataclass(frozen=True, eq=False)
class TopK:
    """The proponents (scores above 0, highest first) and opponents (below 0, lowest first) of n
    test examples.
    """

    proponents: Ranking
    opponents: Ranking

    def of_rows(self, rows: np.ndarray) -> TopK:
        """Returns the same candidates with other test rows: row i becomes `rows[i]`; `rows`
        ascend.
        """
        return TopK(
            *(
                dataclasses.replace(ranking, rows=rows[ranking.rows].astype(np.int32))
                for ranking in (self.proponents, self.opponents)
            )
        )

    def without(self, rows: np.ndarray) -> TopK:
        """Returns the candidates of all other test rows."""
        return TopK(
            *(
                ranking.take(~np.isin(ranking.rows, rows))
                for ranking in (self.proponents, self.opponents)
            )
        )


def cut(candidates: Ranking, k: int) -> Ranking:
    """Returns the k best candidates of each test row by (|score| descending, id ascending); all
    scores have the same sign.
    """
    order = np.lexsort((-np.abs(candidates.scores), candidates.rows))
    rows, scores = candidates.rows[order], candidates.scores[order]
    tied = (rows[1:] == rows[:-1]) & (scores[1:] == scores[:-1])
    if tied.any():
        # Sorting strings is slow and ties are rare, so only the runs of equal scores are sorted by
        # id.
        in_run = np.append(tied, False) | np.insert(tied, 0, False)
        run = np.cumsum(~np.insert(tied, 0, False))
        members = np.flatnonzero(in_run)
        order[members] = order[members[np.lexsort((candidates.ids[order[members]], run[members]))]]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return candidates.take(order[rank < k])


def concatenate(parts: Sequence[Ranking]) -> Ranking:
    """Concatenates rankings (at least one)."""
    if len(parts) == 1:
        return parts[0]
    return Ranking(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.ids for part in parts]),
        concatenate_labels([part.labels for part in parts]),
    )


def merge(parts: Sequence[TopK], k: int) -> TopK:
    """Returns the k best of each test example out of several cuts of the same test examples."""
    return TopK(
        cut(concatenate([part.proponents for part in parts]), k),
        cut(concatenate([part.opponents for part in parts]), k),
    )
