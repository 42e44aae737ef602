"""Tuning of the searches: it decides how fast they are, and never what they find."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SearchTuning:
    """Sizes, and thresholds of heuristics, of the search between records.

    Costs are of one test example with all of a chunk, over the cost of their products;
    `benchmarks/scoring.py` measures what a search takes with the values here.

    Attributes:
        group_tests: most test examples that go through a chunk together: enough that column groups
            are read from memory seldom, few enough that a processor's cache holds their vectors.
        fewest_tests: so few at least, while groups shrink so that threads end together.
        pool_bytes: memory for heaps and candidates of the groups in work; for a large k, groups
            have fewer test examples.
        product_tests: test examples whose products are made together: eight parts of three groups
            of register tiles.
        left_out_norm: norm of the entries of a loss gradient that are left out of the second sieve,
            over N.
        term_cost: cost of a term of the second sieve, over that of one of a product.
        score_cost: cost of an exact score, over that of the product of a pair.
        sketch_sample: training examples whose activations are sampled for sketches.
        sketch_iterations: iterations to find a sketch's directions.
        sketch_rest: part of the squared length that may be outside of a sketch for it to be of use.
        strongest_columns: training examples that are kept as strongest of each output and sign, so
            many over all outputs; with fewer than k a pilot proves little, and keeping them takes
            time.
        fewest_strongest: so many for each output at least.
        followers: test examples that follow one that leads.
        hopeless_cost: above it, a test example is not even tried on the first supergroup, which
            sharpens its threshold.
        weak_cost: above it, a test example that has a leader gets a pilot of its own.
        sampled_tests: test examples that are looked at first; where all of them are hopeless, the
            others are not tried.
        sampling_factor: there is a sample if there are so many times as many test examples.
    """

    group_tests: int = 512
    fewest_tests: int = 64
    pool_bytes: int = 96 << 20
    product_tests: int = 1152
    left_out_norm: float = 0.01
    term_cost: float = 2.0
    score_cost: float = 8.0
    sketch_sample: int = 1024
    sketch_iterations: int = 2
    sketch_rest: float = 0.4
    strongest_columns: int = 4096
    fewest_strongest: int = 64
    followers: int = 15
    hopeless_cost: float = 3.0
    weak_cost: float = 0.5
    sampled_tests: int = 64
    sampling_factor: int = 16


# The tuning of a search that is given none.
DEFAULT_TUNING = SearchTuning()


@dataclasses.dataclass(frozen=True)
class GradientSearchTuning:
    """Sizes of the search between whole gradients.

    Attributes:
        product_bytes: memory of the cosines of a group of test examples with a chunk.
        group_tests: most test examples of a group: few, since all are multiplied with what the
            neediest needs, but enough for products of matrices to be fast.
        candidates: most candidates of a group that are held at once.
    """

    product_bytes: int = 16 << 20
    group_tests: int = 256
    candidates: int = 1_000_000


# The tuning of a search by gradients that is given none.
DEFAULT_GRADIENT_TUNING = GradientSearchTuning()
