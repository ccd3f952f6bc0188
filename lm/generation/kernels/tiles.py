"""One tile of a matrix multiplication, written in LLVM's instructions: some rows of x times one panel of weights.

The 16 sums of every row are one vector and stay in a register until all inputs are read. numba would have to find such
vectors in loops over single numbers; here they are stated. LLVM translates vectors of 16 into whatever registers the
processor has.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from lm.generation.kernels.layout import (
    BFLOAT16,
    BLOCK,
    FLOAT32,
    INT8,
    LINE,
    NUMBERS,
    PANEL,
    QUANTIZED_BLOCK,
    SCALE,
    START,
)

_FEATURES = binding.get_host_cpu_features()
HAS_VNNI = _FEATURES.get("avx512vnni", False)  # an instruction that multiplies and adds four bytes at once
MOST_ROWS = 16 if _FEATURES.get("avx512f", False) else 4  # per tile; each takes a register of 64 bytes

# A sum is one chain of additions, each of which waits for the one before. With few rows, several chains are needed to
# keep the arithmetic units busy.
_CHAINS = 8

_BYTE, _INT32, _INT64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_NUMBERS = _BYTE, ir.IntType(16), _INT32, _FLOAT
_BYTES, _INT16S, _INT32S, _FLOATS = (ir.VectorType(number, PANEL) for number in _NUMBERS)


def make_tile(kind: int, num_rows: int) -> Any:
    """Return a function for numba, `tile(panel, num_blocks, x, x_stride, out, out_stride)`.

    It writes the products of `num_rows` rows of x with the 16 outputs of a panel. All arguments are int64: the address
    of a panel (see `lm.generation.kernels.layout`); the number of blocks of inputs; the addresses of x, float32 or for
    int8 weights quantized blocks, and of `out`, float32, and the bytes from one row of each to the next.
    """
    chains = 1 if kind == INT8 else max(1, _CHAINS // num_rows)
    body = {FLOAT32: _float32, BFLOAT16: _bfloat16, INT8: _int8}[kind]
    steps = 1 if kind == INT8 else BLOCK // max(2, chains)  # per block

    @intrinsic
    def tile(_, panel, num_blocks, x, x_stride, out, out_stride):
        def generate(context, builder, signature, arguments):
            panel, num_blocks, x, x_stride, out, out_stride = arguments
            panel, x, out = (builder.inttoptr(address, _BYTE.as_pointer()) for address in (panel, x, out))
            rows = [builder.gep(x, [builder.mul(x_stride, _INT64(row))]) for row in range(num_rows)]
            scales = builder.gep(panel, [builder.mul(num_blocks, _INT64(BLOCK * PANEL))])  # only int8 has them

            def add(step: Any, sums: list[list[Any]]) -> list[list[Any]]:
                return body(builder, step, panel, scales, rows, sums)

            sums = _loop(builder, builder.mul(num_blocks, _INT64(steps)), num_rows, chains, add)
            for row, parts in enumerate(sums):
                while len(parts) > 1:
                    parts = [builder.fadd(one, two) for one, two in zip(parts[::2], parts[1::2])]
                builder.store(parts[0], _at(builder, out, builder.mul(out_stride, _INT64(row)), _FLOATS), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


def _loop(builder: Any, count: Any, num_rows: int, chains: int, add: Callable[..., Any]) -> list[list[Any]]:
    """sums = add(step, sums) for every step below `count`, at least one; the sums are vectors, [row][chain]."""
    before, loop = builder.block, builder.append_basic_block("tile")
    after = builder.append_basic_block("tile.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INT64)
    old = [[builder.phi(_FLOATS) for _ in range(chains)] for _ in range(num_rows)]
    new = add(step, old)
    following = builder.add(step, _INT64(1))
    step.add_incoming(_INT64(0), before)
    step.add_incoming(following, loop)
    for old_row, new_row in zip(old, new):
        for phi, value in zip(old_row, new_row):
            phi.add_incoming(_constant(_FLOATS, 0.0), before)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return new


def _float32(builder: Any, step: Any, panel: Any, _: Any, rows: list[Any], sums: list[list[Any]]) -> list[list[Any]]:
    new, inputs = [list(row) for row in sums], max(2, len(sums[0]))
    for number in range(inputs):
        at = builder.add(builder.mul(step, _INT64(inputs)), _INT64(number))
        weights = _load(builder, panel, builder.mul(at, _INT64(LINE)), _FLOATS, LINE)
        _add_products(builder, new, number, weights, rows, builder.mul(at, _INT64(4)))
    return new


def _bfloat16(builder: Any, step: Any, panel: Any, _: Any, rows: list[Any], sums: list[list[Any]]) -> list[list[Any]]:
    new, inputs = [list(row) for row in sums], max(2, len(sums[0]))
    for number in range(0, inputs, 2):
        at = builder.add(builder.mul(step, _INT64(inputs)), _INT64(number))
        pairs = _load(builder, panel, builder.mul(at, _INT64(LINE // 2)), _INT32S, LINE)
        # A bfloat16 is the upper half of a float32.
        first = builder.shl(pairs, _constant(_INT32S, 16))
        second = builder.and_(pairs, _constant(_INT32S, 0xFFFF0000))
        for offset, weights in enumerate((first, second)):
            x_at = builder.mul(builder.add(at, _INT64(offset)), _INT64(4))
            _add_products(builder, new, number + offset, builder.bitcast(weights, _FLOATS), rows, x_at)
    return new


def _add_products(builder: Any, sums: list[list[Any]], number: int, weights: Any, rows: list[Any], at: Any) -> None:
    """Add the weights of one input, times that input in every row, to one of the chains."""
    chain = number % len(sums[0])
    for row, x in zip(sums, rows):
        products = builder.fmul(weights, _broadcast(builder, _load(builder, x, at, _FLOAT, 4)), flags=["contract"])
        row[chain] = builder.fadd(row[chain], products, flags=["contract"])


def _int8(builder: Any, block: Any, panel: Any, scales: Any, rows: list[Any], sums: list[list[Any]]) -> list[list[Any]]:
    """Multiply in integers, exactly, and scale the sum of each block.

    The stored weights are 128 too large, so their sum with the inputs is too large by 128 times the sum of the inputs;
    it starts from minus that number.
    """
    at = builder.mul(block, _INT64(BLOCK * PANEL))
    groups = range(BLOCK // 4)
    weights = [_load(builder, panel, builder.add(at, _INT64(LINE * group)), _INT32S, LINE) for group in groups]
    scale = _float16(builder, _load(builder, scales, builder.mul(block, _INT64(2 * PANEL)), _INT16S, 2 * PANEL))
    new = []
    for (total,), x in zip(sums, rows):
        inputs = builder.gep(x, [builder.mul(block, _INT64(QUANTIZED_BLOCK))])
        exact = _broadcast(builder, _load(builder, inputs, _INT64(START), _INT32, 4))
        for group in groups:
            exact = dot4(builder, exact, weights[group], _load(builder, inputs, _INT64(NUMBERS + 4 * group), _INT32, 4))
        both = builder.fmul(scale, _broadcast(builder, _load(builder, inputs, _INT64(SCALE), _FLOAT, 4)))
        products = builder.fmul(builder.sitofp(exact, _FLOATS), both, flags=["contract"])
        new.append([builder.fadd(total, products, flags=["contract"])])
    return new


def dot4(builder: Any, sums: Any, weights: Any, inputs: Any) -> Any:
    """Add to each of 16 sums the products of four bytes: of `weights`, without sign, and `inputs`, with sign."""
    if HAS_VNNI:
        function_type = ir.FunctionType(_INT32S, [_INT32S] * 3)
        function = builder.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", (), function_type)
        return builder.call(function, [sums, weights, _broadcast(builder, inputs)])
    for byte in range(4):
        weight = builder.lshr(weights, _constant(_INT32S, 8 * byte))
        weight = builder.and_(weight, _constant(_INT32S, 0xFF))
        number = builder.ashr(builder.shl(inputs, _INT32(24 - 8 * byte)), _INT32(24))
        sums = builder.add(sums, builder.mul(weight, _broadcast(builder, number)))
    return sums


@intrinsic
def quantize_block(_, x, out):
    """Round the 32 floats at the address `x` to eight bits, and write the block to the address `out`.

    The largest number, by magnitude, becomes 127 or -127. The sums of products with the stored weights, which are 128
    too large, start from -128 times the sum of the numbers.
    """

    def generate(context, builder, signature, arguments):
        x, out = (builder.inttoptr(address, _BYTE.as_pointer()) for address in arguments)
        halves = [_load(builder, x, _INT64(LINE * half), _FLOATS, 4) for half in range(2)]
        magnitudes = [_call(builder, "llvm.fabs.v16f32", _FLOATS, half) for half in halves]
        larger = builder.select(builder.fcmp_ordered(">", *magnitudes), *magnitudes)
        largest = _call(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, larger)
        is_zero = builder.fcmp_ordered("==", largest, _FLOAT(0.0))
        steps = builder.select(is_zero, _FLOAT(0.0), builder.fdiv(_FLOAT(127.0), largest))
        total = _constant(_INT32S, 0)
        for number, half in enumerate(halves):
            nearest = _call(builder, "llvm.rint.v16f32", _FLOATS, builder.fmul(half, _broadcast(builder, steps)))
            integers = builder.fptosi(nearest, _INT32S)
            total = builder.add(total, integers)
            place = _at(builder, out, _INT64(NUMBERS + PANEL * number), _BYTES)
            builder.store(builder.trunc(integers, _BYTES), place, align=1)
        start = builder.mul(_call(builder, "llvm.vector.reduce.add.v16i32", _INT32, total), _INT32(-128))
        builder.store(start, _at(builder, out, _INT64(START), _INT32), align=4)
        builder.store(builder.fdiv(largest, _FLOAT(127.0)), _at(builder, out, _INT64(SCALE), _FLOAT), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _call(builder: Any, name: str, result_type: Any, argument: Any) -> Any:
    """Call one of LLVM's intrinsic functions."""
    function_type = ir.FunctionType(result_type, [argument.type])
    return builder.call(builder.module.declare_intrinsic(name, (), function_type), [argument])


def _float16(builder: Any, bits: Any) -> Any:
    """Convert float16 numbers that are not negative to float32.

    Shifted to the place of a float32's exponent and mantissa, the bits are the number times 2^(15 - 127).
    """
    shifted = builder.shl(builder.zext(bits, _INT32S), _constant(_INT32S, 13))
    return builder.fmul(builder.bitcast(shifted, _FLOATS), _constant(_FLOATS, 2.0**112))


def _at(builder: Any, base: Any, offset: Any, pointee: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), pointee.as_pointer())


def _load(builder: Any, base: Any, offset: Any, pointee: Any, align: int) -> Any:
    return builder.load(_at(builder, base, offset, pointee), align=align)


def _broadcast(builder: Any, number: Any) -> Any:
    """A vector with `number` in each of the 16 places."""
    undefined = ir.Constant(ir.VectorType(number.type, PANEL), ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, number, _INT32(0)), undefined, _constant(_INT32S, 0)
    )


def _constant(vector_type: Any, number: float) -> Any:
    return ir.Constant(vector_type, [number] * PANEL)
