"""How a threshold starts: pilots, training examples that are searched before all others.

A few test examples lead. Their pilots are the training examples strongest in the outputs that they
are strongest in; the leaders' best candidates are the pilots of the test examples like them.
"""

from __future__ import annotations

import numpy as np

from transforms.scoring.kernels import prepare, sieves
from transforms.scoring.kernels.layout import STRONGEST, Pool
from transforms.scoring.search.pools import ChunkSearch


class Pilots:
    """The pilots of a chunk.

    Attributes:
        room: pilots that a test example may have at once.
    """

    def __init__(self, search: ChunkSearch) -> None:
        self._search = search
        tuning, k = search.tuning, search.scoring.k
        outputs = search.chunk.factors.loss_grads.shape[2]
        most = min(k, max(tuning.fewest_strongest, tuning.strongest_columns // outputs))
        # Where all thresholds are known from before, no pilot is needed.
        if (search.floors[:, search.alive] > 0).all():
            most = 0
        self._strongest = (
            search.chunk.strongest(most) if most else np.empty((2, outputs, 0), np.int32)
        )
        self.room = max(most * STRONGEST, 2 * k)

    def search_by_outputs(
        self, pool: Pool, rows: np.ndarray, chosen: np.ndarray, search: ChunkSearch | None = None
    ) -> None:
        """Searches the training examples strongest in the outputs of the chosen test rows.

        `search` replaces the pilots' own; it is of a sample of its test examples.
        """
        search = search or self._search
        prepare.choose_by_outputs(pool, rows, chosen, search.tests.outputs, self._strongest)
        sieves.search_pilots(pool, search.sides(rows), search.chunk.columns, chosen)

    def search_by_leaders(
        self, pool: Pool, rows: np.ndarray, followers: np.ndarray, leaders: np.ndarray
    ) -> np.ndarray:
        """Searches the best candidates of leaders for their followers; returns which test rows have
        a leader: [n] bool.
        """
        search = self._search
        led = prepare.choose_by_leaders(
            pool,
            rows,
            followers,
            np.flatnonzero(leaders),
            search.tests.outputs,
            search.chunk.column_of,
        )
        sieves.search_pilots(pool, search.sides(rows), search.chunk.columns, led)
        return led
