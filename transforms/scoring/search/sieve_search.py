"""The sieve way of the search: pairs are skipped by bounds, and the rest is scored.

Sieves, each over the pairs that the one before let through:

1. Whole column groups: by norms, `|score| ≤ Σ_t n_t n'_t` (Cauchy–Schwarz), and by the highest and
   the lowest that each entry of the loss gradients has in a group.
2. Loss gradients multiplied in float32. Only the large entries of the test example's are
   multiplied, the rest is bounded by its norm: with many classes a loss gradient has its mass on
   few. Activations are bounded by their norms; or, where a few directions hold most of them, by
   sketches: their parts in these directions, and the length of the rest.
3. Where activations are long, loss gradients exactly, then activations of one checkpoint after the
   other, until the rest cannot reach the threshold.

A test example whose pairs would mostly pass is left to the product way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from transforms.scoring.kernels import sieves
from transforms.scoring.kernels.layout import SUPERGROUP_SIZE, Pool
from transforms.scoring.kernels.simd import GROUP_SIZE
from transforms.scoring.search.pilots import Pilots
from transforms.scoring.search.pools import ChunkSearch, Part, best_of, counts_of
from transforms.scoring.search.threads import threads


def search_by_sieves(search: ChunkSearch, pilots: Pilots) -> Iterator[Part]:
    """Searches all test rows, but leaves those for which products cost less.

    Where nearly all could be searched, the few that are left are searched by sieves too, since they
    are not worth laying out all activations.
    """
    # Made here: threads that made them would wait for each other.
    rows, _ = search.tests.order, search.chunk.groups
    for most in (1.0, np.inf):
        left = np.zeros(len(search.alive), bool)
        groups = search.cut_rows(rows, search.tuning.group_tests, threads().count)
        work = functools.partial(_search_rows, search, pilots, most=most)
        for part in threads().map(work, groups):
            left[part.rows] = part.left
            yield part
        rows = rows[left[rows]]
        if len(rows) >= min(search.tuning.product_tests, len(search.alive)) / 4:
            return


def is_worthwhile(search: ChunkSearch, pilots: Pilots) -> tuple[bool, dict[str, int]]:
    """Tells whether to try the sieves: of a sample of test examples, not all are hopeless.

    Returns the pairs that the sample scored, too.
    """
    tuning = search.tuning
    alive = np.flatnonzero(search.alive)
    if len(alive) < tuning.sampled_tests * tuning.sampling_factor:
        return True, {}
    sample = search.sample(alive[:: len(alive) // tuning.sampled_tests])
    rows = np.arange(len(sample.alive))
    unknown = np.any(sample.floors <= 0, axis=0)
    pool = sample.pool(rows, pilots.room)
    pilots.search_by_outputs(pool, rows, unknown, sample)
    costs = estimate_costs(sample, pool, rows, np.ones(len(rows), bool))
    return bool((costs <= tuning.hopeless_cost).any()), counts_of(pool)


def estimate_costs(
    search: ChunkSearch, pool: Pool, rows: np.ndarray, chosen: np.ndarray, first: int = 0
) -> np.ndarray:
    """Estimates the cost of sieves for the pool's rows, from a supergroup on, over that of their
    products: [n] float64; infinite for rows that are not chosen.
    """
    chunk, tests = search.chunk, search.tests
    bounded, passing = np.zeros((2, len(rows)), np.int64)
    last = len(chunk.groups.highest)
    sieves.count_passing(
        pool, search.sides(rows), search.bounding, chosen, first, last, bounded, passing
    )
    size = len(chunk) - first * SUPERGROUP_SIZE * GROUP_SIZE
    _, checkpoints, outputs = tests.factors.loss_grads.shape
    whole = checkpoints * (outputs + tests.factors.activations.shape[2])
    starts = tests.terms.starts
    terms = starts[rows, -1] - starts[rows, 0]
    terms = terms + checkpoints * (3 + tests.factors.sketches.shape[2])
    tuning = search.tuning
    costs = bounded * terms * tuning.term_cost / whole + passing * tuning.score_cost
    return np.where(chosen, costs / size, np.inf)


def _search_rows(search: ChunkSearch, pilots: Pilots, rows: np.ndarray, *, most: float) -> Part:
    """Searches test rows that are next to each other in order, but leaves those that would cost
    more than `most` times their products.

    Where no threshold is known from before, some of them lead: their best candidates give the
    others their thresholds.
    """
    pool = search.pool(rows, pilots.room)
    alive = search.alive[rows]
    known = alive & (search.floors[:, rows] > 0).all(axis=0)
    leads = np.zeros(len(rows), bool)
    leads[np.flatnonzero(alive & ~known)[:: search.tuning.followers + 1]] = True
    chosen = _search_leaders(search, pilots, pool, rows, leads, most)
    followers = alive & ~leads
    if 2 * chosen.sum() >= leads.sum():
        chosen |= _search_followers(search, pilots, pool, rows, followers, known, chosen, most)
    sieves.forget_unchosen(pool, chosen)
    search.floors[:, rows] = pool.floors
    skipped = int(pool.tally[chosen, 0].sum())
    counts = {
        "blocks": skipped,
        "loss_gradients": int(chosen.sum()) * len(search.chunk) - skipped,
        **counts_of(pool),
    }
    return Part(rows, best_of(pool, rows, search.chunk.ranks), alive & ~chosen, counts)


def _search_leaders(
    search: ChunkSearch,
    pilots: Pilots,
    pool: Pool,
    rows: np.ndarray,
    leads: np.ndarray,
    most: float,
) -> np.ndarray:
    """Searches the leading rows; returns those that were searched to the end: [n] bool."""
    sides, bounding = search.sides(rows), search.bounding
    last = len(search.chunk.groups.highest)
    pilots.search_by_outputs(pool, rows, leads)
    costs = estimate_costs(search, pool, rows, leads)
    # The first supergroup, the strongest, sharpens the thresholds.
    chosen = leads & (costs <= most * search.tuning.hopeless_cost)
    sieves.search_groups(pool, sides, bounding, chosen, 0, 1)
    if last > 1:
        chosen &= estimate_costs(search, pool, rows, chosen, first=1) <= most
        sieves.search_groups(pool, sides, bounding, chosen, 1, last)
    return chosen


def _search_followers(
    search: ChunkSearch,
    pilots: Pilots,
    pool: Pool,
    rows: np.ndarray,
    followers: np.ndarray,
    known: np.ndarray,
    leaders: np.ndarray,
    most: float,
) -> np.ndarray:
    """Searches the rows that follow; returns those that were searched to the end: [n] bool."""
    led = pilots.search_by_leaders(pool, rows, followers & ~known, leaders)
    costs = estimate_costs(search, pool, rows, followers & (known | led))
    # Where leaders give too low a threshold, outputs may give a higher one.
    weak = followers & ~known & ~(costs <= search.tuning.weak_cost)
    sieves.forget_unchosen(pool, ~weak)
    pilots.search_by_outputs(pool, rows, weak)
    costs = np.where(weak, estimate_costs(search, pool, rows, weak), costs)
    chosen = followers & (costs <= most)
    last = len(search.chunk.groups.highest)
    sieves.search_groups(pool, search.sides(rows), search.bounding, chosen, 0, last)
    return chosen
