"""Upper bounds of the scores of a test example with a column group or a supergroup, in float32.

The score is `Σ_t p_t q_t ‖ĥ_t‖ ‖ĥ'_t‖`, with `p = δ_t · δ'_t` and q the cosine of the activations.
Of p only the entries that are no terms are unknown, and their norms bound them. q is between −κ and
1, where κ is the sum of the shares of negative entries (0 after a ReLU). The bound is that of the
corners of the two intervals.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from transforms.core.summation import LANES
from transforms.scoring.kernels.compiling import compiled, inlined
from transforms.scoring.kernels.layout import SUPERGROUP_SIZE, ColumnGroups, Terms
from transforms.scoring.kernels.simd import (
    FLOAT32,
    FLOATS,
    GROUP_SIZE,
    INT32,
    INT64,
    VectorBuilder,
    constant_floats,
    int64,
)

# Vectors of a column group's or a supergroup's bounds.
_VECTORS = GROUP_SIZE // LANES

# Addresses of the fields of `Terms` for a test row; and of the training side: loss gradients or
# their outlines, norms, negatives and rests.
_ROW_TERMS = types.UniTuple(types.uintp, 7)
_TRAINING_SIDE = types.UniTuple(types.uintp, 4)


@compiled(forceinline=True)
def bound_group(
    groups: ColumnGroups, group: int, terms: Terms, i: int, cosines: int, above: int, below: int
) -> None:
    """Writes upper bounds of the scores of test row i with a group's columns, and of the negated
    scores, to two addresses: [GROUP_SIZE] float32.

    If `cosines` is not 0 but the address of the products of sketches [T, GROUP_SIZE], the cosine of
    the activations is known but for what is outside of the sketches.
    """
    _, checkpoints, outputs, _ = groups.loss_grads.shape
    start = np.uintp(4 * group * checkpoints)
    addresses = (
        groups.loss_grads.ctypes.data + start * np.uintp(outputs * GROUP_SIZE),
        groups.norms.ctypes.data + start * np.uintp(GROUP_SIZE),
        groups.negatives.ctypes.data + start,
        groups.rests.ctypes.data + start * np.uintp(GROUP_SIZE),
    )
    _bound_columns(checkpoints, outputs, _row_terms(terms, i), addresses, cosines, above, below)


@compiled(forceinline=True)
def bound_supergroup(
    groups: ColumnGroups, supergroup: int, terms: Terms, i: int, above: int, below: int
) -> None:
    """Writes the bounds of all groups of a supergroup to two addresses: [SUPERGROUP_SIZE] float32.

    A bound is no smaller than those that `bound_group` gives of the group's columns: p is bounded
    by the highest and the lowest that each entry has in the group, and by the norms.
    """
    _, checkpoints, outputs, _ = groups.loss_grads.shape
    start = np.uintp(4 * SUPERGROUP_SIZE * supergroup * checkpoints)
    addresses = (
        groups.highest.ctypes.data + start * np.uintp(outputs),
        groups.lowest.ctypes.data + start * np.uintp(outputs),
        groups.largest_norms.ctypes.data + start,
        groups.largest_negatives.ctypes.data + start,
    )
    _bound_outlines(checkpoints, outputs, _row_terms(terms, i), addresses, above, below)


@inlined(forceinline=True)
def _row_terms(terms: Terms, i: int) -> tuple[Any, ...]:
    """Returns the addresses of the fields of `Terms` for row i."""
    checkpoints = terms.rest.shape[1]
    row = np.uintp(4 * i * checkpoints)
    return (
        terms.starts.ctypes.data + np.uintp(8 * i * (checkpoints + 1)),
        terms.outputs.ctypes.data,
        terms.values.ctypes.data,
        terms.rest.ctypes.data + row,
        terms.norms.ctypes.data + row,
        terms.negatives.ctypes.data + row,
        terms.outside.ctypes.data + row,
    )


@intrinsic
def _bound_columns(
    _context: Any,
    checkpoints: Any,
    outputs: Any,
    terms: Any,
    group: Any,
    cosines: Any,
    above: Any,
    below: Any,
) -> Any:
    """The loop of `bound_group`; `cosines` is 0 where nothing is known of them.

    `group` has the addresses of a group's loss gradients, norms, negatives and rests.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, outputs, terms, group, cosines, above, below = arguments
        _, _, _, term_rests, _, test_negatives, test_rests = cgutils.unpack_tuple(builder, terms)
        loss_grads, norms, train_negatives, train_rests = cgutils.unpack_tuple(builder, group)
        code = VectorBuilder(builder)
        aboves, belows, products = (code.variables(_VECTORS, FLOATS) for _ in range(3))
        sketched = builder.icmp_unsigned("!=", cosines, int64(0))
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            t = checkpoint.index
            _multiply_terms(code, t, outputs, terms, loss_grads, products)
            own = code.load(test_negatives, t, FLOAT32)
            others = code.load(train_negatives, t, FLOAT32)
            against = _against(code, own, code.broadcast(others))
            rest = code.broadcast(code.load(term_rests, t, FLOAT32))
            outside = code.broadcast(code.load(test_rests, t, FLOAT32))

            def intervals() -> Iterator[tuple[int, Any, Any, Any]]:
                for vector in range(_VECTORS):
                    index = _column(code, t, vector)
                    slack = builder.fmul(rest, code.load(norms, index, FLOATS))
                    product = builder.load(products[vector])
                    yield vector, index, builder.fadd(product, slack), builder.fsub(product, slack)

            def add_corners(lowest: Any, signed: bool) -> None:
                for vector, index, high, low in intervals():
                    room = builder.fmul(outside, code.load(train_rests, index, FLOATS))
                    cosine = code.load(cosines, index, FLOATS)
                    top = code.smaller(builder.fadd(cosine, room), constant_floats(1.0))
                    bottom = code.larger(builder.fsub(cosine, room), lowest)
                    most, least = _corners(code, (high, low), (top, bottom), signed)
                    code.add(aboves[vector], most)
                    code.add(belows[vector], code.minus(least))

            with builder.if_else(sketched) as (yes, no):
                with yes:
                    either = builder.fcmp_ordered(
                        ">", builder.fadd(own, others), ir.Constant(FLOAT32, 0.0)
                    )
                    with builder.if_else(either) as (signed, positive):
                        with signed:
                            add_corners(code.minus(against), True)
                        with positive:
                            add_corners(constant_floats(0.0), False)
                with no:
                    for vector, _, high, low in intervals():
                        _add_bounds(code, (aboves[vector], belows[vector]), high, low, against)
        code.store_all(aboves, above)
        code.store_all(belows, below)
        return context.get_dummy_value()

    return types.void(
        types.intp, types.intp, _ROW_TERMS, _TRAINING_SIDE, types.uintp, types.uintp, types.uintp
    ), generate


@intrinsic
def _bound_outlines(
    _context: Any,
    checkpoints: Any,
    outputs: Any,
    terms: Any,
    supergroup: Any,
    above: Any,
    below: Any,
) -> Any:
    """The loop of `bound_supergroup`, from the highest and the lowest that each entry of the loss
    gradients has in a group.

    `supergroup` has the addresses of a supergroup's highest, lowest, norms and negatives.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, outputs, terms, supergroup, above, below = arguments
        _, _, _, term_rests, test_norms, test_negatives, _ = cgutils.unpack_tuple(builder, terms)
        highest, lowest, norms, train_negatives = cgutils.unpack_tuple(builder, supergroup)
        code = VectorBuilder(builder)
        aboves, belows, highs, lows = (code.variables(_VECTORS, FLOATS) for _ in range(4))
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            t = checkpoint.index
            _multiply_outlines(code, t, outputs, terms, (highest, lowest), (highs, lows))
            rest, norm = (
                code.broadcast(code.load(term_rests, t, FLOAT32)),
                code.broadcast(code.load(test_norms, t, FLOAT32)),
            )
            for vector in range(_VECTORS):
                index = _column(code, t, vector)
                against = _against(
                    code,
                    code.load(test_negatives, t, FLOAT32),
                    code.load(train_negatives, index, FLOATS),
                )
                length = code.load(norms, index, FLOATS)
                slack, most = builder.fmul(rest, length), builder.fmul(norm, length)
                high = code.smaller(builder.fadd(builder.load(highs[vector]), slack), most)
                minus_low = code.smaller(builder.fsub(slack, builder.load(lows[vector])), most)
                code.add(aboves[vector], code.larger(high, builder.fmul(against, minus_low)))
                code.add(belows[vector], code.larger(minus_low, builder.fmul(against, high)))
        code.store_all(aboves, above)
        code.store_all(belows, below)
        return context.get_dummy_value()

    return types.void(
        types.intp, types.intp, _ROW_TERMS, _TRAINING_SIDE, types.uintp, types.uintp
    ), generate


def _multiply_terms(
    code: VectorBuilder, t: Any, outputs: Any, terms: Any, loss_grads: Any, products: list[Any]
) -> None:
    """Emits code that sums the products of a test row's terms with a group's columns."""
    starts, term_outputs, term_values, *_ = cgutils.unpack_tuple(code.builder, terms)
    code.clear(products)
    with _each_term(code, starts, t) as e:
        index = _entry(code, t, outputs, code.load(term_outputs, e, INT32))
        factor = code.broadcast(code.load(term_values, e, FLOAT32))
        for vector, product in enumerate(products):
            column = code.builder.add(index, int64(vector * LANES))
            code.add_product(product, factor, code.load(loss_grads, column, FLOATS))


def _multiply_outlines(
    code: VectorBuilder,
    t: Any,
    outputs: Any,
    terms: Any,
    outlines: tuple[Any, Any],
    sums: tuple[list[Any], list[Any]],
) -> None:
    """Emits code that sums the highest and the lowest products of a test row's terms with the
    columns of each group.

    `outlines` are the addresses of the highest and the lowest entries.
    """
    builder = code.builder
    starts, term_outputs, term_values, *_ = cgutils.unpack_tuple(builder, terms)
    highest, lowest = outlines
    highs, lows = sums
    code.clear(highs + lows)
    with _each_term(code, starts, t) as e:
        index = _entry(code, t, outputs, code.load(term_outputs, e, INT32))
        value = code.load(term_values, e, FLOAT32)
        positive = builder.fcmp_ordered(">", value, ir.Constant(FLOAT32, 0.0))
        factor = code.broadcast(value)
        for vector in range(_VECTORS):
            column = builder.add(index, int64(vector * LANES))
            for variables, if_positive, if_negative in (
                (highs, highest, lowest),
                (lows, lowest, highest),
            ):
                entries = builder.select(positive, if_positive, if_negative)
                code.add_product(variables[vector], factor, code.load(entries, column, FLOATS))


def _corners(
    code: VectorBuilder, interval: tuple[Any, Any], cosines: tuple[Any, Any], signed: bool
) -> tuple[Any, Any]:
    """Returns the largest and the smallest product of p and q from intervals (high, low) of both;
    `signed` says whether q may be below 0.
    """
    highs, lows = ([code.builder.fmul(p, q) for q in cosines] for p in interval)
    # Where no cosine is below 0, products with the higher p are the higher ones.
    most, least = (highs + lows, highs + lows) if signed else (highs, lows)
    return functools.reduce(code.larger, most), functools.reduce(code.smaller, least)


def _add_bounds(
    code: VectorBuilder, sums: tuple[Any, Any], high: Any, low: Any, against: Any
) -> None:
    """Emits code that adds the bounds above and below of p between `low` and `high`, where q may be
    anything from −κ to 1.
    """
    above, below = sums
    minus_low = code.minus(low)
    code.add(above, code.larger(high, code.builder.fmul(against, minus_low)))
    code.add(below, code.larger(minus_low, code.builder.fmul(against, high)))


@contextlib.contextmanager
def _each_term(code: VectorBuilder, starts: Any, t: Any) -> Iterator[Any]:
    """Emits a loop over the indices of the terms of checkpoint t."""
    start, stop = (
        code.load(starts, t, INT64, 8),
        code.load(starts, code.builder.add(t, int64(1)), INT64, 8),
    )
    with cgutils.for_range_slice(code.builder, start, stop, int64(1)) as (index, _):
        yield index


def _entry(code: VectorBuilder, t: Any, outputs: Any, output: Any) -> Any:
    """Returns the index of an output's first column in loss gradients [T, C, GROUP_SIZE]."""
    row = code.builder.add(code.builder.mul(t, outputs), code.builder.sext(output, INT64))
    return code.builder.mul(row, int64(GROUP_SIZE))


def _column(code: VectorBuilder, t: Any, vector: int) -> Any:
    """Returns the index of a vector's first column in an array [T, GROUP_SIZE]."""
    return code.builder.add(code.builder.mul(t, int64(GROUP_SIZE)), int64(vector * LANES))


def _against(code: VectorBuilder, own: Any, others: Any) -> Any:
    """Returns κ, by which a cosine may be below 0, of the shares of negative entries on both
    sides.
    """
    share = code.builder.fmul(
        code.builder.fadd(code.broadcast(own), others), constant_floats(1 + 1e-6)
    )
    return code.smaller(share, constant_floats(1.0))
