"""The product way of the search: all pairs are multiplied in float32, and those within a proven
margin of the k-th are scored.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from transforms.scoring.kernels import products
from transforms.scoring.kernels.layout import SUPERGROUP_SIZE
from transforms.scoring.kernels.simd import GROUP_SIZE
from transforms.scoring.search.layout import scaled_rows
from transforms.scoring.search.pools import ChunkSearch, Part, best_of, counts_of
from transforms.scoring.search.threads import threads


def search_by_products(search: ChunkSearch, rows: np.ndarray) -> Generator[int, None, Part]:
    """Searches some test rows; yields numbers of pairs as they are done, returns the outcome."""
    chunk, groups = search.chunk, search.chunk.groups
    pool, sides = search.pool(rows), search.sides(rows)
    margin = search.product_margin
    loss_grads, activations = scaled_rows(search.tests.factors, search.tests.features, rows)
    operands = products.Operands(
        loss_grads,
        activations,
        groups,
        chunk.activations,
        margin,
        2 * margin * float(groups.scales.max()),
    )
    total = 0
    for start in range(0, len(groups.scales), SUPERGROUP_SIZE):
        stop = min(start + SUPERGROUP_SIZE, len(groups.scales))

        def multiply(first: int, last: int, start: int = start, stop: int = stop) -> None:
            products.search_products(pool, first, last, start, stop, sides, operands)

        threads().share(len(rows), multiply)
        pairs = len(rows) * (min(stop * GROUP_SIZE, len(chunk)) - start * GROUP_SIZE)
        total += pairs
        yield pairs
    threads().share(
        len(rows),
        lambda first, last: products.settle_rows(pool, first, last, sides, operands.width),
    )
    nothing_left = np.zeros(len(rows), bool)
    counts = {"products": total, **counts_of(pool)}
    return Part(rows, best_of(pool, rows, chunk.ranks), nothing_left, counts)
