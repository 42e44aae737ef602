"""Arrays that compiled loops work on, and the parts that their sums are cut into."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from transforms.core.summation import PART
from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.simd import GROUP_SIZE

# Column groups of a supergroup: their outlines are bounded at once, as a group's columns are.
SUPERGROUP_SIZE = GROUP_SIZE

# Candidates that are scored together.
CANDIDATES_AT_ONCE = 512

# Fills up lists of columns.
NO_COLUMN = np.iinfo(np.int32).max

# Outputs in which a test example is strongest, as many as choose its pilots.
STRONGEST = 4

# Error of float64 arithmetic on a score of the factors, over N N': of the canonical score (n /
# LANES additions of n terms, up to a million of them), and of the bounds that are computed in
# float64.
SLACK = 1e-11


@inlined(inline="always")
def count_parts(n: int) -> int:
    """Returns the number of parts of a float32 sum of n terms, each of `PART` terms at most."""
    return -(-n // PART)


@inlined(forceinline=True)
def part_of_sum(n: int, part: int) -> tuple[int, int]:
    """Returns the first term of a part of a sum of n terms, and the part's number of terms."""
    width = -(-n // count_parts(n))
    return part * width, max(0, min(width, n - part * width))


class Factors(NamedTuple):
    """Factors of the scores of n examples: test examples or training examples.

    Attributes:
        loss_grads, activations: [n, T, C] and [n, T, D] float32, as stored.
        lengths: √η_t ‖ĥ_t‖, [n, T] float64.
        negatives: the norm of ĥ_t's negative entries over ‖ĥ_t‖, rounded up, [n, T] float64. After
            a ReLU it is 0.
        sketches: [n, T, SKETCH] float32, ĥ_t over its length in as many orthonormal directions; or
            [n, T, 0], where nothing is sketched.
        rests: the length outside of these directions, [n, T] float64, with room for all errors of
            sketches: the product of two vectors differs from that of their sketches by at most the
            product of these lengths.
        norms: n_t = √η_t ‖δ_t‖ ‖ĥ_t‖, [n, T] float64.
        norm: N = √self-influence, [n] float64.
        divisors: by which normalisation divides this side's scores, [n] float64.
    """

    loss_grads: np.ndarray
    activations: np.ndarray
    lengths: np.ndarray
    negatives: np.ndarray
    sketches: np.ndarray
    rests: np.ndarray
    norms: np.ndarray
    norm: np.ndarray
    divisors: np.ndarray


class ColumnGroups(NamedTuple):
    """Loss gradients of training examples, scaled, transposed and cut into G column groups of
    `GROUP_SIZE` columns; `SUPERGROUP_SIZE` groups are a supergroup, of which there are S.

    Attributes:
        columns: [m] int32, training rows; column j of group g is `columns[g * GROUP_SIZE + j]`.
        loss_grads: [G, T, C, GROUP_SIZE] float32, `√η_t ‖ĥ_t‖ δ_t` over the group's scale.
        norms: [G, T, GROUP_SIZE] float32, n_t over the group's scale, rounded up.
        scales: [G] float64, by which a group is divided: the largest N of its columns; or 1 where
            normalised, as each column is divided by its own N.
        negatives: [G, T] float32, the largest of `Factors.negatives` in a group, rounded up.
        sketches: [G, T, SKETCH, GROUP_SIZE] float32, of `Factors`; or an empty axis for `SKETCH`.
        rests: [G, T, GROUP_SIZE] float32, of `Factors`, rounded up.
        highest, lowest: [S, T, C, SUPERGROUP_SIZE] float32, of each entry of `loss_grads` in a
            group.
        largest_norms, largest_negatives: [S, T, SUPERGROUP_SIZE] float32, the largest of a group.
    """

    columns: np.ndarray
    loss_grads: np.ndarray
    norms: np.ndarray
    scales: np.ndarray
    negatives: np.ndarray
    sketches: np.ndarray
    rests: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    largest_norms: np.ndarray
    largest_negatives: np.ndarray


class Terms(NamedTuple):
    """Terms of n test examples: the large entries of their scaled loss gradients, and the norm of
    the other entries.

    Attributes:
        starts: [n, T + 1] int64; entries of checkpoint t of row i are `starts[i, t]` to `starts[i,
            t + 1]`.
        outputs: [E] int32.
        values: [E] float32, `√η_t ‖ĥ_t‖ δ_t / N`.
        rest: [n, T] float32, norm of the entries left out, rounded up.
        norms: [n, T] float32, n_t over N, rounded up.
        negatives, outside: [n, T] float32, `Factors.negatives` and `Factors.rests`, rounded up.
    """

    starts: np.ndarray
    outputs: np.ndarray
    values: np.ndarray
    rest: np.ndarray
    norms: np.ndarray
    negatives: np.ndarray
    outside: np.ndarray


class Pool(NamedTuple):
    """The best candidates so far of n test examples, and candidates that are not scored yet; the
    first axis is the sign: proponents, opponents.

    Attributes:
        scores: [2, n, k] float64, a heap with the worst on top; of opponents negated.
        rows: [2, n, k] int32, training rows of the chunk.
        filled: [2, n] int64.
        floors: [2, n] float64; no score below it can be among the k best.
        bounds: [2, n, L] float64, upper bounds of candidates' scores times the test example's
            divisor.
        listed: [2, n, L] int32, their training rows.
        counts: [2, n] int64.
        pilots: [2, n, P] int32, indices in `ColumnGroups.columns` of training rows that are
            searched before all others, ascending and perhaps repeated; `NO_COLUMN` fills up.
        tally: [n, 3] int64, pairs skipped in whole groups, examined, and scored.
    """

    scores: np.ndarray
    rows: np.ndarray
    filled: np.ndarray
    floors: np.ndarray
    bounds: np.ndarray
    listed: np.ndarray
    counts: np.ndarray
    pilots: np.ndarray
    tally: np.ndarray


class Sides(NamedTuple):
    """Both sides of a search, and how their pairs are scored and ranked.

    Attributes:
        test: of all test examples.
        rows: [n] int64, the test row of each row of the pool.
        train: of a chunk.
        rates: [T] float64, η.
        ranks: [m] int32, of the training rows by their ids.
    """

    test: Factors
    rows: np.ndarray
    train: Factors
    rates: np.ndarray
    ranks: np.ndarray


class Bounding(NamedTuple):
    """Arrays that bounds of scores are made from.

    Attributes:
        terms: of all test examples.
        groups: of a chunk.
        margin: the float32 error of a bound over N and the group's scale.
    """

    terms: Terms
    groups: ColumnGroups
    margin: float


class Addresses(NamedTuple):
    """Addresses of the arrays of `Factors`, and the lengths of their last axes.

    Arrays themselves would be counted as used in each call, which costs more than most calls do;
    and threads would wait for each other's counting.
    """

    loss_grads: int
    activations: int
    sketches: int
    lengths: int
    negatives: int
    rests: int
    norm: int
    divisors: int
    checkpoints: int
    outputs: int
    units: int
    sketched: bool


@compiled(forceinline=True)
def addresses_of(side: Factors) -> Addresses:
    """Returns the addresses of the arrays of `side`, which must outlive them."""
    _, checkpoints, outputs = side.loss_grads.shape
    return Addresses(
        side.loss_grads.ctypes.data,
        side.activations.ctypes.data,
        side.sketches.ctypes.data,
        side.lengths.ctypes.data,
        side.negatives.ctypes.data,
        side.rests.ctypes.data,
        side.norm.ctypes.data,
        side.divisors.ctypes.data,
        checkpoints,
        outputs,
        side.activations.shape[2],
        side.sketches.shape[2] > 0,
    )


@inlined(forceinline=True)
def columns_of_group(groups: ColumnGroups, group: int) -> np.uint64:
    """Returns which columns a group has: a bit mask."""
    count = min(GROUP_SIZE, len(groups.columns) - group * GROUP_SIZE)
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(GROUP_SIZE - count)
