"""The building blocks of kernels: argument types, decorators, and machine instructions that numba does not offer.

Arrays reach a kernel as bare pointers: `data[at]` is a single load, without numba's handling of negative indices. A
pointer does not know its length, so every kernel documents what it may read and write.
"""

import inspect
import math
from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Bytes = types.CPointer(types.uint8)
Uint32s = types.CPointer(types.uint32)
Uint64s = types.CPointer(types.uint64)
Int64s = types.CPointer(types.int64)
Int = types.int64

_BYTES = ir.VectorType(ir.IntType(8), 64)
_FIRST_LANE = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
_ZERO_IS_UNDEFINED = ir.Constant(ir.IntType(1), 1)


class Kernel:
    """A function that Python calls. Its arguments are annotated; it returns an int64 and raises no exceptions."""

    def __init__(self, function: Callable) -> None:
        self._function = function
        self._types = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
        self.name = function.__name__
        self.arguments = ["int" if kind is Int else str(kind.dtype) for kind in self._types]

    def compile(self) -> str:
        """Return LLVM's optimized assembly, with a plain C function that has the kernel's name.

        The C function calls the function that numba compiled, which has two more parameters, pointers to the result
        and to an exception, and returns a status (`CPUCallConv` in numba's documentation).
        """
        compiled = numba.cfunc(types.int64(*self._types), error_model="numpy")(self._function)
        parameters = [f"{'i64' if kind is Int else 'ptr'} %{number}" for number, kind in enumerate(self._types)]
        arguments = ", ".join(["ptr %result, ptr %exception", *parameters])
        return f"""{compiled.inspect_llvm()}
define i64 @{self.name}({", ".join(parameters)}) {{
  %result = alloca i64
  %exception = alloca ptr
  call i32 @"{compiled.native_name.removeprefix("cfunc.")}"({arguments})
  %value = load i64, ptr %result
  ret i64 %value
}}
"""


kernel = Kernel
# Only kernels call these functions; without the wrappers that Python needs, compiling takes a tenth less time.
_options = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inlined = numba.njit(forceinline=True, **_options)
compiled = numba.njit(**_options)


@intrinsic
def bytes_between(_, data, at, first, last):
    """Return a 64-bit mask: bit i says whether first <= data[at + i] <= last. Reads 64 bytes at any alignment."""

    def generate(context, builder, signature, arguments):
        data, at, first, last = arguments
        distance = builder.sub(_load(builder, data, at, _BYTES), _broadcast(builder, first))
        inside = builder.icmp_unsigned("<=", distance, _broadcast(builder, builder.sub(last, first)))
        return builder.bitcast(inside, ir.IntType(64))

    return types.uint64(data, types.int64, types.uint8, types.uint8), generate


@intrinsic
def load_2_bytes(_, data, at):
    """Return data[at] and data[at + 1] as one little-endian number."""

    def generate(context, builder, signature, arguments):
        return builder.zext(_load(builder, *arguments, ir.IntType(16)), ir.IntType(64))

    return types.uint64(data, types.int64), generate


@intrinsic
def load_8_bytes(_, data, at):
    """Return data[at] to data[at + 7] as one little-endian number."""

    def generate(context, builder, signature, arguments):
        return _load(builder, *arguments, ir.IntType(64))

    return types.uint64(data, types.int64), generate


@intrinsic
def store_8_bytes(_, data, at, value):
    """Write a number to data[at] to data[at + 7], the inverse of `load_8_bytes`."""

    def generate(context, builder, signature, arguments):
        data, at, value = arguments
        builder.store(value, builder.bitcast(builder.gep(data, [at]), value.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


@intrinsic
def store_pair(_, numbers, at, pair):
    """Write the lower half of `pair` to numbers[at] and the upper half to numbers[at + 1]."""

    def generate(context, builder, signature, arguments):
        numbers, at, pair = arguments
        builder.store(pair, builder.bitcast(builder.gep(numbers, [at]), pair.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, types.uint64), generate


@intrinsic
def prefetch(_, numbers, at):
    """Start to bring numbers[at] into the processor's cache, for reading."""

    def generate(context, builder, signature, arguments):
        numbers, at = arguments
        pointer = builder.bitcast(builder.gep(numbers, [at]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number]), name
        )
        builder.call(function, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(numbers, types.int64), generate


@intrinsic
def load_acquire(_, numbers, at):
    """Return numbers[at]; what another thread wrote before its `store_release` of that number is then visible."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), "acquire", align=8)

    return numbers.dtype(numbers, types.int64), generate


@intrinsic
def store_release(_, numbers, at, value):
    """Write a number to numbers[at], after everything that this thread has written so far."""

    def generate(context, builder, signature, arguments):
        numbers, at, value = arguments
        builder.store_atomic(value, builder.gep(numbers, [at]), "release", align=8)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, numbers.dtype), generate


@intrinsic
def fetch_add(_, numbers, at):
    """Add 1 to numbers[at] and return what it was before; safe with several threads."""

    def generate(context, builder, signature, arguments):
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", builder.gep(arguments[0], [arguments[1]]), one, "acq_rel")

    return numbers.dtype(numbers, types.int64), generate


@intrinsic
def try_lock(_, numbers, at):
    """Take the lock numbers[at] if it is free, that is 0; return whether this succeeded. `store_release` frees it."""

    def generate(context, builder, signature, arguments):
        one = ir.Constant(ir.IntType(64), 1)
        before = builder.atomic_rmw("xchg", builder.gep(arguments[0], [arguments[1]]), one, "acquire")
        return builder.icmp_unsigned("==", before, ir.Constant(ir.IntType(64), 0))

    return types.boolean(numbers, types.int64), generate


@intrinsic
def narrow(_, characters, at, data, to):
    """Write the low bytes of characters[at : at + 16] to data[to : to + 16].

    Returns a mask: bit i says whether characters[at + i] is not ASCII.
    """
    kind = ir.VectorType(ir.IntType(characters.dtype.bitwidth), 16)
    low_bytes = ir.VectorType(ir.IntType(8), 16)

    def generate(context, builder, signature, arguments):
        characters, at, data, to = arguments
        loaded = _load(builder, characters, at, kind)
        low = loaded if kind == low_bytes else builder.trunc(loaded, low_bytes)
        builder.store(low, builder.bitcast(builder.gep(data, [to]), low_bytes.as_pointer()), align=1)
        non_ascii = builder.icmp_unsigned(">", loaded, ir.Constant(kind, [127] * 16))
        return builder.zext(builder.bitcast(non_ascii, ir.IntType(16)), ir.IntType(64))

    return types.uint64(characters, types.int64, data, types.int64), generate


@intrinsic
def copy_16(_, numbers, at, target, to):
    """Write numbers[at : at + 16] to target[to : to + 16]; of larger numbers than these can be, only the low bits."""
    kind, target_kind = (ir.VectorType(ir.IntType(array.dtype.bitwidth), 16) for array in (numbers, target))

    def generate(context, builder, signature, arguments):
        numbers, at, target, to = arguments
        loaded = _load(builder, numbers, at, kind)
        values = loaded if kind == target_kind else builder.trunc(loaded, target_kind)
        builder.store(values, builder.bitcast(builder.gep(target, [to]), target_kind.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, target, types.int64), generate


@intrinsic
def smallest_of_16(_, numbers, at):
    """Return the smallest of numbers[at : at + 16]."""
    kind = ir.VectorType(ir.IntType(numbers.dtype.bitwidth), 16)

    def generate(context, builder, signature, arguments):
        name = f"llvm.vector.reduce.umin.v16{kind.element.intrinsic_name}"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(kind.element, [kind]), name
        )
        return builder.call(function, [_load(builder, *arguments, kind)])

    return numbers.dtype(numbers, types.int64), generate


@intrinsic
def bytes_at(_, address):
    """Return the memory at an address as bytes."""
    return Bytes(address), _to_pointer


@intrinsic
def int8s_at(_, address):
    """Return the memory at an address as signed bytes."""
    return types.CPointer(types.int8)(address), _to_pointer


@intrinsic
def uint16s_at(_, address):
    """Return the memory at an address as 16-bit numbers."""
    return types.CPointer(types.uint16)(address), _to_pointer


@intrinsic
def floats_at(_, address):
    """Return the memory at an address as float32 numbers."""
    return types.CPointer(types.float32)(address), _to_pointer


@intrinsic
def uint32s_at(_, address):
    """Return the memory at an address as 32-bit numbers."""
    return Uint32s(address), _to_pointer


@intrinsic
def int64s_at(_, address):
    """Return the memory at an address as 64-bit numbers."""
    return Int64s(address), _to_pointer


def _to_pointer(context, builder, signature, arguments):
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


@intrinsic
def count_bits(_, mask):
    """Return how many bits are set in `mask`."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def lowest_bit(_, mask):
    """Return the index of the lowest bit that is set in `mask`, which must not be 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], _ZERO_IS_UNDEFINED)

    return types.int64(types.uint64), generate


@intrinsic
def highest_bit(_, mask):
    """Return the index of the highest bit that is set in `mask`, which must not be 0."""

    def generate(context, builder, signature, arguments):
        return builder.sub(ir.Constant(ir.IntType(64), 63), builder.ctlz(arguments[0], _ZERO_IS_UNDEFINED))

    return types.int64(types.uint64), generate


@compiled
def exp(x):
    """exp(x) for x from -87 to 88, in operations that the compiler can vectorize; x outside is clamped to that range.

    With x = (n + f) ln 2, integer n and |f| <= 1/2, exp(x) = 2^n 2^f. 2^n is written into the exponent bits of a float,
    and 2^f is its Taylor series up to the sixth power; the seventh would be less than half a unit in the last place.
    """
    x = min(max(x, np.float32(-87)), np.float32(88)) * np.float32(1 / math.log(2))
    n = np.floor(x + np.float32(0.5))
    f = (x - n) * np.float32(math.log(2))
    series = np.float32(1 / 720)
    series = series * f + np.float32(1 / 120)
    series = series * f + np.float32(1 / 24)
    series = series * f + np.float32(1 / 6)
    series = series * f + np.float32(1 / 2)
    series = series * f + np.float32(1)
    series = series * f + np.float32(1)
    return series * np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


def _load(builder: ir.IRBuilder, pointer: ir.Value, at: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.load(builder.bitcast(builder.gep(pointer, [at]), kind.as_pointer()), align=1)


def _broadcast(builder: ir.IRBuilder, byte: ir.Value) -> ir.Value:
    """Return a vector of 64 copies of `byte`."""
    undefined = ir.Constant(_BYTES, ir.Undefined)
    lane = builder.insert_element(undefined, byte, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(lane, undefined, _FIRST_LANE)
