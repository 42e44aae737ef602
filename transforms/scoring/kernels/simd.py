"""Vector instructions for compiled loops, written by hand in LLVM's language.

Exact sums forbid a compiler to reorder additions, which it would have to in order to use vector
units; and sums stay in registers only if they have no address. All instructions take addresses of
arrays. An array itself would be counted as used in each call: that costs more than most calls do,
and threads would wait for each other's counting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from transforms.core.summation import LANES

# Columns of a column group. One multiplication reads them from neighbouring memory, and 64 bits
# hold a mask of those that pass.
GROUP_SIZE = 64

# Candidates that are multiplied with a test example at once: their sums fit into registers.
QUAD = 4

FLOAT32, FLOAT64, INT32, INT64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
FLOATS, DOUBLES = ir.VectorType(FLOAT32, LANES), ir.VectorType(FLOAT64, LANES)


def int64(value: int) -> Any:
    """Returns a constant integer of 64 bits."""
    return ir.Constant(INT64, value)


def constant_floats(value: float) -> Any:
    """Returns a vector of `LANES` equal constants."""
    return ir.Constant(FLOATS, [value] * LANES)


class VectorBuilder:
    """An LLVM builder with loads, stores and arithmetic of vectors.

    An array is given by its address; `size` is the number of bytes of its entries.
    """

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def pointer(self, address: Any, index: Any, kind: Any, size: int = 4) -> Any:
        """Returns a pointer to entry `index` of an array."""
        return self.builder.inttoptr(
            self.builder.add(address, self.builder.mul(index, int64(size))), kind.as_pointer()
        )

    def load(self, address: Any, index: Any, kind: Any, size: int = 4) -> Any:
        """Loads entry `index` of an array; a vector, from there on."""
        return self.builder.load(self.pointer(address, index, kind, size), align=min(size, 8))

    def store(self, value: Any, address: Any, index: Any, size: int = 4) -> None:
        """Stores entry `index` of an array; a vector, from there on."""
        pointer = self.pointer(address, index, value.type, size)
        self.builder.store(value, pointer, align=min(size, 8))

    def store_all(self, variables: list[Any], address: Any) -> None:
        """Stores vectors one after the other."""
        for i, variable in enumerate(variables):
            self.store(self.builder.load(variable), address, int64(i * LANES))

    def broadcast(self, value: Any, count: int = LANES) -> Any:
        """Returns a vector of one number."""
        undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(
            single, undefined, ir.Constant(ir.VectorType(INT32, count), [0] * count)
        )

    def first_lanes(self, count: Any) -> Any:
        """Returns a mask of the first `count` of `LANES`."""
        return self.builder.icmp_signed(
            "<", ir.Constant(ir.VectorType(INT32, LANES), list(range(LANES))), self.broadcast(count)
        )

    def masked_load(self, address: Any, index: Any, mask: Any) -> Any:
        """Loads a float32 array from entry `index` on where the mask is set; 0 elsewhere."""
        kind = ir.FunctionType(FLOATS, [FLOATS.as_pointer(), INT32, mask.type, FLOATS])
        load = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0"
        )
        pointer, alignment = self.pointer(address, index, FLOATS), ir.Constant(INT32, 4)
        return self.builder.call(load, [pointer, alignment, mask, constant_floats(0.0)])

    def prefetch(self, address: Any, index: Any, size: int) -> None:
        """Brings entry `index` of an array into the second cache, if the address is valid."""
        pointer = self.pointer(address, index, ir.IntType(8), size)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(INT32, value) for value in (0, 2, 1))
        self.builder.call(function, [pointer, read, near, data])

    def fused(self, x: Any, y: Any, added: Any) -> Any:
        """Returns `x * y + added`, rounded once or twice as the processor likes."""
        kind = x.type
        suffix = f"v{kind.count}f{64 if kind.element == FLOAT64 else 32}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{suffix}"
        )
        return self.builder.call(function, [x, y, added])

    def larger(self, x: Any, y: Any) -> Any:
        """Returns the larger of two, lane by lane."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def smaller(self, x: Any, y: Any) -> Any:
        """Returns the smaller of two, lane by lane."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, y), x, y)

    def minus(self, value: Any) -> Any:
        """Returns a vector negated."""
        return self.builder.fsub(constant_floats(0.0), value)

    def shuffled(self, x: Any, y: Any, lanes: Sequence[int]) -> Any:
        """Returns some lanes of two vectors; those of `y` are counted on from those of `x`."""
        return self.builder.shuffle_vector(
            x, y, ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
        )

    def variables(self, n: int, kind: Any) -> list[Any]:
        """Allocates n zero vectors to be added to."""
        allocated = [cgutils.alloca_once(self.builder, kind) for _ in range(n)]
        self.clear(allocated)
        return allocated

    def clear(self, variables: list[Any]) -> None:
        """Sets vectors to zero."""
        for variable in variables:
            kind = variable.type.pointee
            self.builder.store(ir.Constant(kind, [0.0] * kind.count), variable)

    def add(self, variable: Any, value: Any) -> None:
        """Adds to a variable."""
        self.builder.store(self.builder.fadd(self.builder.load(variable), value), variable)

    def add_product(self, variable: Any, x: Any, y: Any) -> None:
        """Adds a product to a variable, rounded once or twice."""
        self.builder.store(self.fused(x, y, self.builder.load(variable)), variable)


@intrinsic
def load_float64(_context: Any, address: Any, index: Any) -> Any:
    """Loads entry `index` of a float64 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, index = arguments
        return VectorBuilder(builder).load(address, index, FLOAT64, 8)

    return types.float64(types.uintp, types.intp), generate


@intrinsic
def lowest_bit(_context: Any, mask: Any) -> Any:
    """Returns the index of the lowest bit that is set of 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def count_bits(_context: Any, mask: Any) -> Any:
    """Counts the bits that are set of 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _mask(comparison: str) -> Callable:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = VectorBuilder(builder)
        address, level = arguments
        mask = int64(0)
        for first in range(0, GROUP_SIZE, LANES):
            passing = builder.fcmp_ordered(
                comparison, code.load(address, int64(first), FLOATS), code.broadcast(level)
            )
            bits = builder.zext(builder.bitcast(passing, ir.IntType(LANES)), INT64)
            mask = builder.or_(mask, builder.shl(bits, int64(first)))
        return mask

    return generate


@intrinsic
def at_least(_context: Any, values: Any, level: Any) -> Any:
    """Returns which of a column group's float32 values are no less than a level: a bit mask."""
    return types.uint64(types.uintp, types.float32), _mask(">=")


@intrinsic
def at_most(_context: Any, values: Any, level: Any) -> Any:
    """Returns which of a column group's float32 values are no more than a level: a bit mask."""
    return types.uint64(types.uintp, types.float32), _mask("<=")


def _dots(code: VectorBuilder, x: Any, others: Sequence[Any], n: Any) -> Any:
    """Emits the code of `dots`; returns a vector of its `QUAD` products."""
    builder = code.builder
    lanes = code.variables(QUAD, DOUBLES)
    code.clear(lanes)

    def add(own: Any, rest: Sequence[Any]) -> None:
        own = builder.fpext(own, DOUBLES)
        for variable, vector in zip(lanes, rest, strict=True):
            code.add_product(variable, own, builder.fpext(vector, DOUBLES))

    whole = builder.sdiv(n, int64(LANES))
    with cgutils.for_range(builder, whole) as loop:
        offset = builder.mul(loop.index, int64(LANES))
        add(code.load(x, offset, FLOATS), [code.load(y, offset, FLOATS) for y in others])
    done = builder.mul(whole, int64(LANES))
    rest = builder.trunc(builder.sub(n, done), INT32)
    with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(INT32, 0))):
        mask = code.first_lanes(rest)
        add(code.masked_load(x, done, mask), [code.masked_load(y, done, mask) for y in others])
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
        lower = [first + lane for first in range(0, 16, width) for lane in range(half)]
        totals = [
            builder.fadd(
                code.shuffled(x, y, lower), code.shuffled(x, y, [lane + half for lane in lower])
            )
            for x, y in zip(totals[::2], totals[1::2], strict=True)
        ]
    (total,) = totals
    return builder.fadd(
        code.shuffled(total, total, range(0, 8, 2)), code.shuffled(total, total, range(1, 8, 2))
    )


@intrinsic
def dots(_context: Any, x: Any, y0: Any, y1: Any, y2: Any, y3: Any, n: Any, products: Any) -> Any:
    """Writes the dot products of a float32 vector of length n with `QUAD` others to float64
    `products`.

    They have the bits of `summation.lane_sum`: a product of two float32 is exact in float64, so
    that it does not matter whether it is rounded before it is added.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, *others, n, products = arguments
        code = VectorBuilder(builder)
        code.store(_dots(code, x, others, n), products, int64(0), 8)
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
    """Writes `Σ_t η_t (δ_t · δ'_t) (ĥ_t · ĥ'_t)` of a test row with `QUAD` training rows to float64
    `totals`, in the bits of the canonical score.

    `loss_grads` and `activations` are addresses of rows [T, outputs] and [T, units], those of the
    test row first; `rates` that of η [T].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        checkpoints, loss_grads, outputs, activations, units, rates, totals = arguments
        code = VectorBuilder(builder)
        (total,) = code.variables(1, ir.VectorType(FLOAT64, QUAD))
        with cgutils.for_range(builder, checkpoints) as checkpoint:
            products = []
            for vectors, width in ((loss_grads, outputs), (activations, units)):
                step = builder.mul(builder.mul(checkpoint.index, width), int64(4))
                x, *others = (
                    builder.add(address, step) for address in cgutils.unpack_tuple(builder, vectors)
                )
                products.append(_dots(code, x, others, width))
            rate = code.broadcast(code.load(rates, checkpoint.index, FLOAT64, 8), QUAD)
            # Multiplied and added one by one, each rounded.
            code.add(total, builder.fmul(rate, builder.fmul(*products)))
        code.store(builder.load(total), totals, int64(0), 8)
        return context.get_dummy_value()

    return types.void(
        types.intp, _ROWS, types.intp, _ROWS, types.intp, types.uintp, types.uintp
    ), generate


@intrinsic
def borrowed(_context: Any, arrays: Any) -> Any:
    """Returns the same array, or named tuple, whose arrays are not counted as used; something else
    must hold them.

    Counting takes longer than many a loop, and threads that count the same arrays wait for each
    other.
    """

    def borrow(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.BaseTuple):
            parts = [
                borrow(context, builder, part, builder.extract_value(value, i))
                for i, part in enumerate(kind)
            ]
            return context.make_tuple(builder, kind, parts)
        if not isinstance(kind, types.Array):
            return value
        array = context.make_array(kind)(context, builder, value)
        no_owner = ir.Constant(ir.IntType(8).as_pointer(), None)
        array.meminfo, array.parent = no_owner, no_owner
        return array._getvalue()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return borrow(context, builder, signature.args[0], arguments[0])

    return arrays(arrays), generate
