"""Products of a register tile: `TILE_ROWS` vectors with the columns of a column group, in float32.

A column is loaded once for all vectors of the tile, and all sums stay in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from transforms.core.summation import LANES
from transforms.scoring.kernels.simd import (
    FLOAT32,
    FLOATS,
    GROUP_SIZE,
    INT64,
    VectorBuilder,
    int64,
)

# Vectors of a register tile: so many sums with a column group fit into registers.
TILE_ROWS = 6

# Bytes of the next column group that each row of a column group [n, GROUP_SIZE] brings into the
# cache: an eighth of the row, so that eight tiles bring the whole.
AHEAD = 4 * GROUP_SIZE // 8

# Columns whose sums are in registers at once, beside `TILE_ROWS` rows: AVX-512 has 32 registers of
# 16 numbers, else there are 16 of 8.
_COLUMNS_AT_ONCE = GROUP_SIZE if llvm.get_host_cpu_features().get("avx512f") else LANES

# Directions of a sketch: more leave less outside, and take longer. In memory, zeros fill them up to
# whole vectors.
SKETCH, SKETCH_COLUMNS = 24, 32


def _multiply(
    code: VectorBuilder,
    vectors: Sequence[Any],
    n: Any,
    group: Any,
    finish: Callable,
    width: int = GROUP_SIZE,
    ahead: Any = None,
) -> None:
    """Emits code that multiplies a register tile of vectors of length n, given by their addresses,
    with columns [n, width].

    `finish(sum, row, column)` emits code that takes the sums of `LANES` columns. `ahead`, if given,
    is an address from which on `n * AHEAD` bytes are brought into the cache meanwhile.
    """
    builder = code.builder
    at_once = min(width, _COLUMNS_AT_ONCE)
    sums = [code.variables(at_once // LANES, FLOATS) for _ in range(TILE_ROWS)]
    for first in range(0, width, at_once):
        for row in sums:
            code.clear(row)
        with cgutils.for_range(builder, n) as loop:
            start = builder.add(builder.mul(loop.index, int64(width)), int64(first))
            columns = [
                code.load(group, builder.add(start, int64(column)), FLOATS)
                for column in range(0, at_once, LANES)
            ]
            if ahead is not None:
                code.prefetch(ahead, loop.index, AHEAD)
            for vector, row in zip(vectors, sums, strict=True):
                factor = code.broadcast(code.load(vector, loop.index, FLOAT32))
                for variable, column in zip(row, columns, strict=True):
                    code.add_product(variable, factor, column)
        for i, row in enumerate(sums):
            for vector, variable in enumerate(row):
                finish(builder.load(variable), i, int64(first + vector * LANES))


def _tile(code: VectorBuilder, addresses: Any) -> list[Any]:
    """Loads the `TILE_ROWS` addresses of an array."""
    return [code.load(addresses, int64(i), INT64, 8) for i in range(TILE_ROWS)]


def _adding(code: VectorBuilder, sums: Any, width: int) -> Callable:
    """Returns a `finish` of `_multiply` that adds to `sums` [TILE_ROWS, width] float32."""

    def finish(total: Any, row: int, column: Any) -> None:
        index = code.builder.add(column, int64(row * width))
        code.store(code.builder.fadd(total, code.load(sums, index, FLOATS)), sums, index)

    return finish


@intrinsic
def multiply_sketches(
    _context: Any, checkpoints: Any, sketches: Any, group: Any, products: Any
) -> Any:
    """Writes the float32 products of sketches with those of a column group [T, SKETCH, GROUP_SIZE]
    to `products` [TILE_ROWS, T, GROUP_SIZE].

    `sketches` are the addresses of `TILE_ROWS` sketches [T, SKETCH].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, addresses, group, products = arguments
        code = VectorBuilder(builder)
        vectors = _tile(code, addresses)
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            t = checkpoint.index
            own = [builder.add(vector, builder.mul(t, int64(4 * SKETCH))) for vector in vectors]

            def finish(total: Any, row: int, column: Any) -> None:
                start = builder.add(builder.mul(checkpoints, int64(row)), t)
                code.store(
                    total, products, builder.add(builder.mul(start, int64(GROUP_SIZE)), column)
                )

            _multiply(
                code,
                own,
                int64(SKETCH),
                builder.add(group, builder.mul(t, int64(4 * SKETCH * GROUP_SIZE))),
                finish,
            )
        return context.get_dummy_value()

    return types.void(types.intp, types.uintp, types.uintp, types.uintp), generate


@intrinsic
def add_sketches(_context: Any, vectors: Any, n: Any, directions: Any, sketches: Any) -> Any:
    """Adds float32 products of `TILE_ROWS` vectors of length n with directions [n, SKETCH_COLUMNS]
    to `sketches` [TILE_ROWS, SKETCH_COLUMNS].

    `vectors` are their addresses.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, n, directions, sketches = arguments
        code = VectorBuilder(builder)
        _multiply(
            code,
            _tile(code, addresses),
            n,
            directions,
            _adding(code, sketches, SKETCH_COLUMNS),
            SKETCH_COLUMNS,
        )
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp, types.uintp), generate


@intrinsic
def add_products(_context: Any, vectors: Any, n: Any, group: Any, ahead: Any, sums: Any) -> Any:
    """Adds the float32 products of `TILE_ROWS` vectors of length n, given by their addresses, with
    a column group [n, GROUP_SIZE] to `sums` [TILE_ROWS, GROUP_SIZE].

    From `ahead` on, `n * AHEAD` bytes are brought into the cache meanwhile.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, n, group, ahead, sums = arguments
        code = VectorBuilder(builder)
        _multiply(
            code, _tile(code, addresses), n, group, _adding(code, sums, GROUP_SIZE), ahead=ahead
        )
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp, types.uintp, types.uintp), generate


@intrinsic
def add_scaled_products(
    _context: Any, vectors: Any, n: Any, group: Any, ahead: Any, factors: Any, sums: Any
) -> Any:
    """Adds the products of `add_products`, each multiplied by its own of `factors`, to `sums`; both
    [TILE_ROWS, GROUP_SIZE] float32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, n, group, ahead, factors, sums = arguments
        code = VectorBuilder(builder)

        def finish(total: Any, row: int, column: Any) -> None:
            index = builder.add(column, int64(row * GROUP_SIZE))
            factor, added = code.load(factors, index, FLOATS), code.load(sums, index, FLOATS)
            code.store(code.fused(total, factor, added), sums, index)

        _multiply(code, _tile(code, addresses), n, group, finish, ahead=ahead)
        return context.get_dummy_value()

    return types.void(
        types.uintp, types.intp, types.uintp, types.uintp, types.uintp, types.uintp
    ), generate
