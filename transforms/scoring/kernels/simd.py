"""Vector instructions for compiled loops, written by hand in LLVM's language where no compiler
would find them.

Exact sums forbid a compiler to reorder additions, which it would have to in order to use vector
units; and sums stay in registers only if they have no address. All take addresses of arrays and not
arrays, which would be counted as used in each call: that costs more than most calls do, and threads
would wait for each other's counting.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from transforms.core.summation import LANES

# Columns of a block: those of one multiplication lie together in memory, and a bit mask of 64 bits
# tells which of them pass.
BLOCK = 64

# Vectors that are multiplied with a block, or with each other, at once: so many sums of vectors fit
# into registers.
TILE, QUAD = 6, 4

# Bytes of what will be multiplied next that are brought into the cache with each row of a block [n,
# BLOCK]: an eighth of it, so that eight multiplications of a block bring the next one.
AHEAD = 4 * BLOCK // 8

# Of a block's columns, those whose sums are in registers at once, beside TILE rows: by the 32 long
# or the 16 short registers there are.
_AT_ONCE = BLOCK if llvm.get_host_cpu_features().get("avx512f") else LANES

# Directions of a sketch: more leave less outside, and take longer. In memory, zeros fill them up to
# whole vectors.
SKETCH, SKETCH_COLUMNS = 24, 32

_f32, _f64, _i32, _i64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_floats, _doubles = ir.VectorType(_f32, LANES), ir.VectorType(_f64, LANES)


def _number(value: int) -> Any:
    return ir.Constant(_i64, value)


def _all(value: float) -> Any:
    return ir.Constant(_floats, [value] * LANES)


class _Code:
    """An LLVM builder with the words that are needed here."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def place(self, address: Any, index: Any, kind: Any, size: int = 4) -> Any:
        """A pointer to number `index` of an array whose entries take `size` bytes."""
        return self.builder.inttoptr(
            self.builder.add(address, self.builder.mul(index, _number(size))), kind.as_pointer()
        )

    def at(self, address: Any, index: Any, kind: Any, size: int = 4) -> Any:
        """Number `index` of an array; of a vector, from there on."""
        return self.builder.load(self.place(address, index, kind, size), align=min(size, 8))

    def put(self, value: Any, address: Any, index: Any, size: int = 4) -> None:
        """Stores number `index` of an array; of a vector, from there on."""
        self.builder.store(value, self.place(address, index, value.type, size), align=min(size, 8))

    def put_all(self, variables: list[Any], address: Any) -> None:
        """Stores vectors one after the other."""
        for place, variable in enumerate(variables):
            self.put(self.builder.load(variable), address, _number(place * LANES))

    def spread(self, value: Any, count: int = LANES) -> Any:
        """A vector of one number."""
        nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(_i32, 0))
        return self.builder.shuffle_vector(
            first, nothing, ir.Constant(ir.VectorType(_i32, count), [0] * count)
        )

    def first(self, count: Any) -> Any:
        """A mask of the first `count` of `LANES`."""
        return self.builder.icmp_signed(
            "<", ir.Constant(ir.VectorType(_i32, LANES), list(range(LANES))), self.spread(count)
        )

    def some(self, address: Any, index: Any, mask: Any) -> Any:
        """Where the mask says so, what is in a float32 array from number `index` on; else 0."""
        kind = ir.FunctionType(_floats, [_floats.as_pointer(), _i32, mask.type, _floats])
        load = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0"
        )
        return self.builder.call(
            load, [self.place(address, index, _floats), ir.Constant(_i32, 4), mask, _all(0.0)]
        )

    def fused(self, one: Any, other: Any, added: Any) -> Any:
        """`one * other + added`, rounded once or twice as the processor likes."""
        kind = one.type
        suffix = f"v{kind.count}f{64 if kind.element == _f64 else 32}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{suffix}"
        )
        return self.builder.call(function, [one, other, added])

    def fetch(self, address: Any, index: Any, size: int) -> None:
        """Brings what is at number `index` of an array into the second cache, if there is
        anything.
        """
        pointer = self.place(address, index, ir.IntType(8), size)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(_i32, value) for value in (0, 2, 1))
        self.builder.call(function, [pointer, read, near, data])

    def larger(self, one: Any, other: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", one, other), one, other)

    def smaller(self, one: Any, other: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", one, other), one, other)

    def minus(self, value: Any) -> Any:
        return self.builder.fsub(_all(0.0), value)

    def shuffled(self, one: Any, other: Any, places: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(
            one, other, ir.Constant(ir.VectorType(_i32, len(places)), list(places))
        )

    def variables(self, n: int, kind: Any) -> list[Any]:
        """Zero vectors to be added to."""
        found = [cgutils.alloca_once(self.builder, kind) for _ in range(n)]
        self.clear(found)
        return found

    def clear(self, variables: list[Any]) -> None:
        for variable in variables:
            self.builder.store(
                ir.Constant(variable.type.pointee, [0.0] * variable.type.pointee.count), variable
            )

    def add(self, variable: Any, value: Any) -> None:
        self.builder.store(self.builder.fadd(self.builder.load(variable), value), variable)

    def add_product(self, variable: Any, one: Any, other: Any) -> None:
        self.builder.store(self.fused(one, other, self.builder.load(variable)), variable)


@intrinsic
def load_float64(_context: Any, address: Any, index: Any) -> Any:
    """Number `index` of a float64 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, index = arguments
        return _Code(builder).at(address, index, _f64, 8)

    return types.float64(types.uintp, types.intp), generate


@intrinsic
def lowest_bit(_context: Any, mask: Any) -> Any:
    """The number of zeros below the lowest one of 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def count_bits(_context: Any, mask: Any) -> Any:
    """The number of ones of 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _mask(comparison: str) -> Callable:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(builder)
        address, level = arguments
        mask = _number(0)
        for first in range(0, BLOCK, LANES):
            passing = builder.fcmp_ordered(
                comparison, code.at(address, _number(first), _floats), code.spread(level)
            )
            bits = builder.zext(builder.bitcast(passing, ir.IntType(LANES)), _i64)
            mask = builder.or_(mask, builder.shl(bits, _number(first)))
        return mask

    return generate


@intrinsic
def at_least(_context: Any, values: Any, level: Any) -> Any:
    """Which of a block's float32 values are no less than a level: one of 64 bits each."""
    return types.uint64(types.uintp, types.float32), _mask(">=")


@intrinsic
def at_most(_context: Any, values: Any, level: Any) -> Any:
    """Which of a block's float32 values are no more than a level: one of 64 bits each."""
    return types.uint64(types.uintp, types.float32), _mask("<=")


def _dots(code: _Code, x: Any, others: Sequence[Any], n: Any) -> Any:
    """Code of `dots`: a vector of its `QUAD` products."""
    builder = code.builder
    lanes = code.variables(QUAD, _doubles)
    code.clear(lanes)

    def add(own: Any, rest: Sequence[Any]) -> None:
        own = builder.fpext(own, _doubles)
        for variable, vector in zip(lanes, rest, strict=True):
            code.add_product(variable, own, builder.fpext(vector, _doubles))

    whole = builder.sdiv(n, _number(LANES))
    with cgutils.for_range(builder, whole) as loop:
        offset = builder.mul(loop.index, _number(LANES))
        add(code.at(x, offset, _floats), [code.at(y, offset, _floats) for y in others])
    done = builder.mul(whole, _number(LANES))
    rest = builder.trunc(builder.sub(n, done), _i32)
    with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(_i32, 0))):
        mask = code.first(rest)
        add(code.some(x, done, mask), [code.some(y, done, mask) for y in others])
    # Folded all at once: in each step two vectors of sums become one, that has the sums of their
    # halves side by side.
    totals = [builder.load(variable) for variable in lanes]
    totals = [
        builder.fadd(
            code.shuffled(total, total, range(8)), code.shuffled(total, total, range(8, 16))
        )
        for total in totals
    ]
    for width in (8, 4):
        half = width // 2
        lower = [first + place for first in range(0, 16, width) for place in range(half)]
        totals = [
            builder.fadd(
                code.shuffled(one, other, lower),
                code.shuffled(one, other, [place + half for place in lower]),
            )
            for one, other in zip(totals[::2], totals[1::2], strict=True)
        ]
    (total,) = totals
    return builder.fadd(
        code.shuffled(total, total, range(0, 8, 2)), code.shuffled(total, total, range(1, 8, 2))
    )


@intrinsic
def dots(_context: Any, x: Any, y0: Any, y1: Any, y2: Any, y3: Any, n: Any, products: Any) -> Any:
    """The dot products of a float32 vector of length n with `QUAD` others, into float64 `products`:
    the bits of `sums.lane_sum`.

    A product of two float32 is exact in float64, so that it does not matter whether it is rounded
    before it is added.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, *others, n, products = arguments
        code = _Code(builder)
        code.put(_dots(code, x, others, n), products, _number(0), 8)
        return context.get_dummy_value()

    return types.void(
        types.uintp, types.uintp, types.uintp, types.uintp, types.uintp, types.intp, types.uintp
    ), generate


# Addresses of a test row's vectors and of those of `QUAD` training rows, at the first checkpoint.
_ROWS = types.UniTuple(types.uintp, 1 + QUAD)


@intrinsic
def score_quad(
    _context: Any,
    checkpoints: Any,
    loss_grads: Any,
    outputs: Any,
    activations: Any,
    units: Any,
    rates: Any,
    totals: Any,
) -> Any:
    """`Σ_t η_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)` of a test row with `QUAD` training rows, into float64
    `totals`: the bits of the canonical score.

    `loss_grads` and `activations` are addresses of rows [T, outputs] and [T, units], those of the
    test row first; `rates` that of η [T].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, loss_grads, outputs, activations, units, rates, totals = arguments
        code = _Code(builder)
        (total,) = code.variables(1, ir.VectorType(_f64, QUAD))
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            products = []
            for vectors, width in ((loss_grads, outputs), (activations, units)):
                step = builder.mul(builder.mul(checkpoint.index, width), _number(4))
                x, *others = (
                    builder.add(address, step) for address in cgutils.unpack_tuple(builder, vectors)
                )
                products.append(_dots(code, x, others, width))
            rate = code.spread(code.at(rates, checkpoint.index, _f64, 8), QUAD)
            # Multiplied and added one by one, each rounded.
            code.add(total, builder.fmul(rate, builder.fmul(*products)))
        code.put(builder.load(total), totals, _number(0), 8)
        return context.get_dummy_value()

    return types.void(
        types.intp, _ROWS, types.intp, _ROWS, types.intp, types.uintp, types.uintp
    ), generate


def _multiply(
    code: _Code,
    vectors: Sequence[Any],
    n: Any,
    block: Any,
    finish: Callable,
    width: int = BLOCK,
    ahead: Any = None,
) -> None:
    """Code that multiplies `TILE` vectors of length n, given by their addresses, with a block [n,
    width].

    `finish(sum, row, column)` makes code that takes the sums of `LANES` columns. `ahead`, if given,
    is an address from which on `n * AHEAD` bytes are brought into the cache meanwhile.
    """
    builder = code.builder
    at_once = min(width, _AT_ONCE)
    sums = [code.variables(at_once // LANES, _floats) for _ in range(TILE)]
    for first in range(0, width, at_once):
        for row in sums:
            code.clear(row)
        with cgutils.for_range(builder, n) as loop:
            start = builder.add(builder.mul(loop.index, _number(width)), _number(first))
            columns = [
                code.at(block, builder.add(start, _number(place)), _floats)
                for place in range(0, at_once, LANES)
            ]
            if ahead is not None:
                code.fetch(ahead, loop.index, AHEAD)
            for vector, row in zip(vectors, sums, strict=True):
                factor = code.spread(code.at(vector, loop.index, _f32))
                for variable, column in zip(row, columns, strict=True):
                    code.add_product(variable, factor, column)
        for place, row in enumerate(sums):
            for column, variable in enumerate(row):
                finish(builder.load(variable), place, _number(first + column * LANES))


def _tile(code: _Code, addresses: Any) -> list[Any]:
    """The `TILE` addresses in an array."""
    return [code.at(addresses, _number(place), _i64, 8) for place in range(TILE)]


def _adding(code: _Code, sums: Any, width: int) -> Callable:
    """What adds the sums of `_multiply` to `sums` [TILE, width] float32."""

    def finish(total: Any, row: int, column: Any) -> None:
        place = code.builder.add(column, _number(row * width))
        code.put(code.builder.fadd(total, code.at(sums, place, _floats)), sums, place)

    return finish


@intrinsic
def multiply_sketches(
    _context: Any, checkpoints: Any, sketches: Any, block: Any, products: Any
) -> Any:
    """The float32 products of sketches with those of a block [T, SKETCH, BLOCK], into `products`
    [TILE, T, BLOCK].

    `sketches` are the addresses of `TILE` sketches [T, SKETCH].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, addresses, block, products = arguments
        code = _Code(builder)
        vectors = _tile(code, addresses)
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            t = checkpoint.index
            own = [builder.add(vector, builder.mul(t, _number(4 * SKETCH))) for vector in vectors]

            def finish(total: Any, row: int, column: Any) -> None:
                start = builder.add(builder.mul(checkpoints, _number(row)), t)
                code.put(total, products, builder.add(builder.mul(start, _number(BLOCK)), column))

            _multiply(
                code,
                own,
                _number(SKETCH),
                builder.add(block, builder.mul(t, _number(4 * SKETCH * BLOCK))),
                finish,
            )
        return context.get_dummy_value()

    return types.void(types.intp, types.uintp, types.uintp, types.uintp), generate


@intrinsic
def add_sketches(_context: Any, vectors: Any, n: Any, directions: Any, sketches: Any) -> Any:
    """Adds float32 products of `TILE` vectors of length n with directions [n, SKETCH_COLUMNS] to
    `sketches` [TILE, SKETCH_COLUMNS].

    `vectors` are their addresses.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, n, directions, sketches = arguments
        code = _Code(builder)
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
def add_block(_context: Any, vectors: Any, n: Any, block: Any, ahead: Any, sums: Any) -> Any:
    """Adds the float32 products of `TILE` vectors of length n, given by their addresses, with a
    block [n, BLOCK] to `sums` [TILE, BLOCK].

    From `ahead` on, `n * AHEAD` bytes are brought into the cache meanwhile.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, n, block, ahead, sums = arguments
        code = _Code(builder)
        _multiply(code, _tile(code, addresses), n, block, _adding(code, sums, BLOCK), ahead=ahead)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp, types.uintp, types.uintp), generate


@intrinsic
def add_scaled_block(
    _context: Any, vectors: Any, n: Any, block: Any, ahead: Any, factors: Any, sums: Any
) -> Any:
    """Adds the products of `add_block`, each multiplied by its own of `factors`, to `sums`; both
    [TILE, BLOCK] float32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, n, block, ahead, factors, sums = arguments
        code = _Code(builder)

        def finish(total: Any, row: int, column: Any) -> None:
            place = builder.add(column, _number(row * BLOCK))
            code.put(
                code.fused(total, code.at(factors, place, _floats), code.at(sums, place, _floats)),
                sums,
                place,
            )

        _multiply(code, _tile(code, addresses), n, block, finish, ahead=ahead)
        return context.get_dummy_value()

    return types.void(
        types.uintp, types.intp, types.uintp, types.uintp, types.uintp, types.uintp
    ), generate


# Addresses of a test row's share of `kernels.Terms`, field by field; and of what is compared with
# it: loss gradients or their outlines.
_ROW_TERMS = types.UniTuple(types.uintp, 7)
_COMPARED = types.UniTuple(types.uintp, 4)


@intrinsic
def bound_columns(
    _context: Any,
    checkpoints: Any,
    outputs: Any,
    terms: Any,
    block: Any,
    cosines: Any,
    above: Any,
    below: Any,
) -> Any:
    """The loop of `kernels.bound_block`: bounds of a block's columns; `cosines` is 0 where nothing
    is known of them.

    `block` has the addresses of a block's loss gradients, norms, negatives and rests.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, outputs, terms, block, cosines, above, below = arguments
        starts, term_outputs, term_values, term_rests, _, test_negatives, test_rests = (
            cgutils.unpack_tuple(builder, terms)
        )
        loss_grads, norms, train_negatives, train_rests = cgutils.unpack_tuple(builder, block)
        code = _Code(builder)
        count = BLOCK // LANES
        aboves, belows, products = (code.variables(count, _floats) for _ in range(3))
        sketched = builder.icmp_unsigned("!=", cosines, _number(0))
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            t = checkpoint.index
            code.clear(products)
            with _terms(code, starts, t) as e:
                index = _entry(code, t, outputs, code.at(term_outputs, e, _i32))
                factor = code.spread(code.at(term_values, e, _f32))
                for place, product in enumerate(products):
                    code.add_product(
                        product,
                        factor,
                        code.at(loss_grads, builder.add(index, _number(place * LANES)), _floats),
                    )
            own, others = code.at(test_negatives, t, _f32), code.at(train_negatives, t, _f32)
            against = _against(code, own, code.spread(others))
            rest, outside = (
                code.spread(code.at(term_rests, t, _f32)),
                code.spread(code.at(test_rests, t, _f32)),
            )

            def places() -> Iterator[tuple[int, Any, Any, Any]]:
                for place in range(count):
                    there = builder.add(builder.mul(t, _number(BLOCK)), _number(place * LANES))
                    slack, product = (
                        builder.fmul(rest, code.at(norms, there, _floats)),
                        builder.load(products[place]),
                    )
                    yield place, there, builder.fadd(product, slack), builder.fsub(product, slack)

            def corners(signed: bool) -> None:
                for place, there, high, low in places():
                    room, cosine = (
                        builder.fmul(outside, code.at(train_rests, there, _floats)),
                        code.at(cosines, there, _floats),
                    )
                    top = code.smaller(builder.fadd(cosine, room), _all(1.0))
                    bottom = code.larger(
                        builder.fsub(cosine, room), code.minus(against) if signed else _all(0.0)
                    )
                    highs, lows = ([builder.fmul(p, q) for q in (top, bottom)] for p in (high, low))
                    # Where no cosine is below 0, products with the higher p are the higher ones.
                    most, least = (highs + lows, highs + lows) if signed else (highs, lows)
                    code.add(aboves[place], functools.reduce(code.larger, most))
                    code.add(belows[place], code.minus(functools.reduce(code.smaller, least)))

            with builder.if_else(sketched) as (yes, no):
                with yes:
                    either = builder.fcmp_ordered(
                        ">", builder.fadd(own, others), ir.Constant(_f32, 0.0)
                    )
                    with builder.if_else(either) as (signed, positive):
                        with signed:
                            corners(True)
                        with positive:
                            corners(False)
                with no:
                    for place, _, high, low in places():
                        code.add(
                            aboves[place], code.larger(high, builder.fmul(against, code.minus(low)))
                        )
                        code.add(
                            belows[place], code.larger(code.minus(low), builder.fmul(against, high))
                        )
        code.put_all(aboves, above)
        code.put_all(belows, below)
        return context.get_dummy_value()

    return types.void(
        types.intp, types.intp, _ROW_TERMS, _COMPARED, types.uintp, types.uintp, types.uintp
    ), generate


@intrinsic
def bound_outlines(
    _context: Any, checkpoints: Any, outputs: Any, terms: Any, page: Any, above: Any, below: Any
) -> Any:
    """The loop of `kernels.bound_page`: bounds of whole blocks, from the highest and the lowest
    that each entry has in them.

    `page` has the addresses of a page's highest, lowest, norms and negatives.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, outputs, terms, page, above, below = arguments
        starts, term_outputs, term_values, term_rests, test_norms, test_negatives, _ = (
            cgutils.unpack_tuple(builder, terms)
        )
        highest, lowest, norms, train_negatives = cgutils.unpack_tuple(builder, page)
        code = _Code(builder)
        count = BLOCK // LANES
        aboves, belows, highs, lows = (code.variables(count, _floats) for _ in range(4))
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            t = checkpoint.index
            code.clear(highs + lows)
            with _terms(code, starts, t) as e:
                index = _entry(code, t, outputs, code.at(term_outputs, e, _i32))
                value = code.at(term_values, e, _f32)
                positive = builder.fcmp_ordered(">", value, ir.Constant(_f32, 0.0))
                factor = code.spread(value)
                for place in range(count):
                    there = builder.add(index, _number(place * LANES))
                    for variables, one, other in (
                        (highs, highest, lowest),
                        (lows, lowest, highest),
                    ):
                        code.add_product(
                            variables[place],
                            factor,
                            code.at(builder.select(positive, one, other), there, _floats),
                        )
            rest, norm = (
                code.spread(code.at(term_rests, t, _f32)),
                code.spread(code.at(test_norms, t, _f32)),
            )
            for place in range(count):
                there = builder.add(builder.mul(t, _number(BLOCK)), _number(place * LANES))
                against = _against(
                    code, code.at(test_negatives, t, _f32), code.at(train_negatives, there, _floats)
                )
                length = code.at(norms, there, _floats)
                slack, most = builder.fmul(rest, length), builder.fmul(norm, length)
                high = code.smaller(builder.fadd(builder.load(highs[place]), slack), most)
                minus_low = code.smaller(builder.fsub(slack, builder.load(lows[place])), most)
                code.add(aboves[place], code.larger(high, builder.fmul(against, minus_low)))
                code.add(belows[place], code.larger(minus_low, builder.fmul(against, high)))
        code.put_all(aboves, above)
        code.put_all(belows, below)
        return context.get_dummy_value()

    return types.void(
        types.intp, types.intp, _ROW_TERMS, _COMPARED, types.uintp, types.uintp
    ), generate


@contextlib.contextmanager
def _terms(code: _Code, starts: Any, t: Any) -> Iterator[Any]:
    """A loop over the places of the terms of checkpoint t."""
    start, stop = (
        code.at(starts, t, _i64, 8),
        code.at(starts, code.builder.add(t, _number(1)), _i64, 8),
    )
    with cgutils.for_range_slice(code.builder, start, stop, _number(1)) as (place, _):
        yield place


def _entry(code: _Code, t: Any, outputs: Any, output: Any) -> Any:
    """Where the columns of an output begin in a block of loss gradients [T, C, BLOCK]."""
    row = code.builder.add(code.builder.mul(t, outputs), code.builder.sext(output, _i64))
    return code.builder.mul(row, _number(BLOCK))


def _against(code: _Code, own: Any, others: Any) -> Any:
    """κ, by which a cosine may be below 0, of the shares of negative entries on both sides."""
    share = code.builder.fmul(code.builder.fadd(code.spread(own), others), _all(1 + 1e-6))
    return code.smaller(share, _all(1.0))


@intrinsic
def borrowed(_context: Any, arrays: Any) -> Any:
    """The same array or named tuple of arrays, but not counted as used; something else must hold
    them.

    To count takes longer than many a loop, and threads that count the same arrays wait for each
    other.
    """

    def borrow(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.BaseTuple):
            parts = [
                borrow(context, builder, one, builder.extract_value(value, place))
                for place, one in enumerate(kind)
            ]
            return context.make_tuple(builder, kind, parts)
        found = context.make_array(kind)(context, builder, value)
        nothing = ir.Constant(ir.IntType(8).as_pointer(), None)
        found.meminfo, found.parent = nothing, nothing
        return found._getvalue()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return borrow(context, builder, signature.args[0], arguments[0])

    return arrays(arrays), generate
