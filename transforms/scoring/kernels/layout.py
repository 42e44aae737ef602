"""The arrays that compiled loops work on, and how sums are cut into parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from transforms.core.summation import PART
from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.simd import BLOCK

# Blocks of a page: their outlines are bounded at once, as a block's columns are.
PAGE = BLOCK

# Candidates that are scored together.
CANDIDATES_AT_ONCE = 512

NO_PLACE = np.iinfo(np.int32).max

# How many outputs of a test example are taken as those that it is strongest in.
STRONGEST = 4

# Error of float64 arithmetic on a score of the factors, over N N': of the canonical score (n /
# LANES additions of n terms, up to a million of them), and of the bounds that are computed in
# float64.
SLACK = 1e-11


@inlined(inline="always")
def count_parts(n: int) -> int:
    """Into how many parts a float32 sum of n terms is cut, each of `PART` terms at most."""
    return -(-n // PART)


@inlined(forceinline=True)
def part_of_sum(n: int, part: int) -> tuple[int, int]:
    """Where a part of a sum of n terms starts, and how many terms it has."""
    width = -(-n // count_parts(n))
    return part * width, max(0, min(width, n - part * width))


class Factors(NamedTuple):
    """What the scores of n examples are made of.

    Attributes:
        loss_grads, activations: [n, T, C] and [n, T, D] float32, as stored.
        lengths: √η_t ‖ĥ_t‖, [n, T] float64.
        negatives: the norm of ĥ_t's negative entries over ‖ĥ_t‖, rounded up, [n, T] float64. After
            a ReLU it is 0.
        sketches: [n, T, SKETCH] float32, ĥ_t over its length in as many orthonormal directions; or
            [n, T, 0], where nothing is sketched.
        rests: the length of what is outside of these directions, [n, T] float64, with room for all
            errors of sketches: a product of two of these lengths is no less than what the product
            of two vectors may be off from that of their sketches.
        norms: n_t = √η_t ‖δ_t‖ ‖ĥ_t‖, [n, T] float64.
        norm: N = √self-influence, [n] float64.
        divisors: what normalisation divides this side's scores by, [n] float64.
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


class Blocks(NamedTuple):
    """Loss gradients of training examples, scaled, transposed and cut into blocks of `BLOCK`
    columns; `PAGE` blocks have an outline.

    Attributes:
        columns: [m] int32, training rows; column j of block b is `columns[b * BLOCK + j]`.
        loss_grads: [B, T, C, BLOCK] float32, `√η_t ‖ĥ_t‖ δ_t` over the block's unit.
        norms: [B, T, BLOCK] float32, n_t over the block's unit, rounded up.
        units: [B] float64, what a block is scaled by: the largest N of its columns, or, where
            normalised, each column by its own.
        negatives: [B, T] float32, the largest of `Factors.negatives` in a block, rounded up.
        sketches: [B, T, SKETCH, BLOCK] float32, of `Factors`; or an empty axis for `SKETCH`.
        rests: [B, T, BLOCK] float32, of `Factors`, rounded up.
        highest, lowest: [B / PAGE, T, C, PAGE] float32, of each entry of `loss_grads` in a block.
        page_norms, page_negatives: [B / PAGE, T, PAGE] float32, the largest of a block.
    """

    columns: np.ndarray
    loss_grads: np.ndarray
    norms: np.ndarray
    units: np.ndarray
    negatives: np.ndarray
    sketches: np.ndarray
    rests: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    page_norms: np.ndarray
    page_negatives: np.ndarray


class Terms(NamedTuple):
    """The large entries of n test examples' scaled loss gradients, and the norm of the rest.

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
    """The best so far of n test examples, and candidates that are not scored yet; the first axis is
    the sign: proponents, opponents.

    Attributes:
        scores: [2, n, k] float64, a heap with the worst on top; of opponents negated.
        rows: [2, n, k] int32, training rows of the chunk.
        filled: [2, n] int64.
        floors: [2, n] float64; no score below it can be among the k best.
        bounds: [2, n, L] float64, upper bounds of candidates' scores times the test example's
            divisor.
        listed: [2, n, L] int32, their training rows.
        counts: [2, n] int64.
        pilots: [2, n, P] int32, places in `Blocks.columns` of training rows that are searched
            before all others, ascending and perhaps repeated; `NO_PLACE` fills up.
        tally: [n, 3] int64, pairs skipped in whole blocks, examined, and scored.
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


class Addresses(NamedTuple):
    """Where the arrays of `Factors` are, and how long their last axes. Arrays themselves would be
    counted as used in each call, which costs more than most calls do; and threads would wait for
    each other's counting.
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
def columns_of_block(blocks: Blocks, block: int) -> np.uint64:
    """Which columns a block has: a bit mask."""
    count = min(BLOCK, len(blocks.columns) - block * BLOCK)
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(BLOCK - count)
