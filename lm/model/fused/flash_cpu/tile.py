"""One tile of a matrix product, written in LLVM's instructions: some rows times 16 or 32 columns.

The 16 sums of every row are one vector, and stay in a register until all terms are added. numba would have to find such
vectors in loops over single numbers; here they are stated. LLVM translates vectors of 16 into whatever registers the
processor has.
"""

import math
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from lm.model.fused.flash_cpu.task import TILE

# With AVX-512, 16 of the 32 registers hold sums. Eight rows are enough to hide that an addition takes four cycles, and
# with two vectors per row, every number that is loaded is used twice. Other processors have 16 registers of half the
# size.
_HAS_AVX512 = binding.get_host_cpu_features().get("avx512f", False)
TILE_ROWS = 8 if _HAS_AVX512 else 4
WIDE = 2 * TILE if _HAS_AVX512 else TILE

_BYTE, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), TILE)
_SAME_LANE = ir.Constant(ir.VectorType(_INT32, TILE), [0] * TILE)


def make_product(num_vectors: int) -> Any:
    """Return a function for numba, `add(out, out_stride, a, a_stride, a_step, b, b_step, b_next, count, keep)`.

    It computes out += Σ_k a[:, k] b[k, :] for `TILE_ROWS` rows and 16 `num_vectors` columns of float32; without `keep`,
    `out` starts at 0. `out`, `a` and `b` are addresses; the next row of `out` and of `a` is so many bytes further
    (`out_stride`, `a_stride`), and so is the next of the `count` terms (`a_step`, `b_step`) and the next vector of a
    row of b (`b_next`).
    """

    @intrinsic
    def add(_, out, out_stride, a, a_stride, a_step, b, b_step, b_next, count, keep):
        def generate(context, builder, signature, arguments):
            out, out_stride, a, a_stride, a_step, b, b_step, b_next, count, keep = arguments
            out, a, b = (builder.inttoptr(address, _BYTE.as_pointer()) for address in (out, a, b))
            rows = [builder.gep(a, [builder.mul(a_stride, _INT64(row))]) for row in range(TILE_ROWS)]
            panels = [builder.gep(b, [builder.mul(b_next, _INT64(vector))]) for vector in range(num_vectors)]
            places = [
                _at(builder, out, builder.add(builder.mul(out_stride, _INT64(row)), _INT64(4 * TILE * vector)))
                for row in range(TILE_ROWS)
                for vector in range(num_vectors)
            ]
            zero = ir.Constant(_VECTOR, [0.0] * TILE)
            firsts = [builder.select(keep, builder.load(place, align=4), zero) for place in places]

            before, loop = builder.block, builder.append_basic_block("tile")
            after = builder.append_basic_block("tile.end")
            builder.branch(loop)
            builder.position_at_end(loop)
            term = builder.phi(_INT64)
            sums = [builder.phi(_VECTOR) for _ in places]
            b_at, a_at = builder.mul(term, b_step), builder.mul(term, a_step)
            columns = [builder.load(_at(builder, panel, b_at), align=4) for panel in panels]
            numbers = [_broadcast(builder, builder.load(_at(builder, row, a_at, ir.FloatType()))) for row in rows]
            products = [builder.fmul(column, number, flags=["contract"]) for number in numbers for column in columns]
            new = [builder.fadd(*pair, flags=["contract"]) for pair in zip(sums, products)]
            following = builder.add(term, _INT64(1))
            term.add_incoming(_INT64(0), before)
            term.add_incoming(following, loop)
            for total, first, added in zip(sums, firsts, new):
                total.add_incoming(first, before)
                total.add_incoming(added, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            for added, place in zip(new, places):
                builder.store(added, place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9, types.boolean), generate

    return add


@intrinsic
def largest(_, row, count):
    """The largest of `count` float32 numbers, a positive multiple of 16, at the address `row`; none of them is NaN."""

    def generate(context, builder, signature, arguments):
        row, count = arguments
        row = builder.inttoptr(row, _BYTE.as_pointer())
        before, loop = builder.block, builder.append_basic_block("largest")
        after = builder.append_basic_block("largest.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        column, old = builder.phi(_INT64), builder.phi(_VECTOR)
        numbers = builder.load(_at(builder, row, builder.mul(column, _INT64(4))), align=4)
        new = builder.select(builder.fcmp_ordered(">", numbers, old), numbers, old)
        following = builder.add(column, _INT64(TILE))
        column.add_incoming(_INT64(0), before)
        column.add_incoming(following, loop)
        old.add_incoming(ir.Constant(_VECTOR, [-math.inf] * TILE), before)
        old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        function_type = ir.FunctionType(ir.FloatType(), [_VECTOR])
        reduce = builder.module.declare_intrinsic("llvm.vector.reduce.fmax.v16f32", (), function_type)
        return builder.call(reduce, [new], fastmath=["nnan"])  # without, each step would check for NaN

    return types.float32(types.int64, types.int64), generate


def _at(builder: Any, base: Any, offset: Any, kind: Any = _VECTOR) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _broadcast(builder: Any, number: Any) -> Any:
    """A vector with `number` in each of the 16 places."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, number, _INT32(0)), undefined, _SAME_LANE)
