"""Pointers from addresses and the atomic counter: what kernels need and numba does not offer."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Floats = types.CPointer(types.float32)
Halves = types.CPointer(types.uint16)
Bytes = types.CPointer(types.int8)
Ints = types.CPointer(types.int64)


def _pointer(pointer_type):
    @intrinsic
    def pointer(_, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer_type))

        return pointer_type(types.int64), generate

    return pointer


# Each takes an address as int64 and returns a pointer; reading or writing pointer[i] is a single instruction.
floats, halves, signed_bytes, ints = map(_pointer, (Floats, Halves, Bytes, Ints))
ints32 = _pointer(types.CPointer(types.int32))


@intrinsic
def atomic_increment(_, counter):
    """counter[0] += 1, safe with several threads: a thread that sees the new value also sees all earlier writes."""

    def generate(context, builder, signature, arguments):
        builder.atomic_rmw("add", arguments[0], ir.IntType(64)(1), "acq_rel")
        return context.get_dummy_value()

    return types.void(counter), generate


@intrinsic
def atomic_load(_, counter):
    """Return counter[0], including the changes that other threads made."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(arguments[0], "acquire", 8)

    return types.int64(counter), generate
