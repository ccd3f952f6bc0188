"""A decoding step as machine code, compiled by numba: on a CPU, where a step reads every weight for little work.

The weights may be float32 or bfloat16; all else is float32. numba has no bfloat16: it is the upper half of a float32,
kept as uint16. Several threads do a step together, each a share of the outputs of every product and of the heads, and
wait for each other where one reads what another wrote.

Shapes: L layers, B rows, S positions, V vocabulary, D d_model, H heads, G key/value heads, K d_head, F width inside the
feed-forward layer, N = 2L + 1 norms: what each sub-layer reads, and the head, passes one.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

NO_NORM, RMS_NORM, LAYER_NORM = 0, 1, 2
_EPS = np.float32(1e-5)
_SPINS = 2000  # some microseconds
_YIELDS = 20_000  # some milliseconds
_LONGEST_SLEEP = 10_000  # microseconds
_TILE = 4
_CACHE_LINE = 64  # bytes

# Sums may be taken in any order, as in every fast product.
_FAST = {"reassoc", "contract", "nsz"}

_yield_processor = types.ExternalFunction("sched_yield", types.int32())
_sleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@njit(nogil=True, cache=True, error_model="numpy")
def lead(num_threads, orders, arrived, model, scratch, token_ids, positions, keys, values, logits):
    """Do a step together with the threads that `follow`.

    `orders` are the steps asked for so far and the number of rows in the next one, `arrived` a counter that is 0 at
    first; see `lm.generation.numba_decoder`, which packs `model` and `scratch`. Each of the first rows brings
    `token_ids[row]` at `positions[row]`; `keys` and `values` (L, B, G, S, K) get what it adds, `logits` (B, V) the
    outcome. A step begins and ends within machine code: nothing is left half done when Ctrl-C comes.
    """
    waits = _current(arrived) // num_threads  # nobody is within a step now
    _increment(orders)
    state = token_ids, positions, keys, values, logits
    _step(0, waits, num_threads, orders[1], arrived, model, scratch, state)


@njit(nogil=True, cache=True, error_model="numpy")
def follow(thread, num_threads, orders, arrived, model, scratch, token_ids, positions, keys, values, logits):
    """What every other thread does, with the same arrays: its share of each step, until `orders` are negative."""
    waits = done = 0
    state = token_ids, positions, keys, values, logits
    while True:
        idle = 0
        while _current(orders) == done:
            idle = _pause(idle)
            if idle > _YIELDS:  # nobody is generating: look again ever more seldom
                _sleep(min(idle - _YIELDS, _LONGEST_SLEEP))
        done = _current(orders)
        if done < 0:
            return
        waits = _step(thread, waits, num_threads, orders[1], arrived, model, scratch, state)


@njit(error_model="numpy")
def _step(thread, waits, num_threads, num_rows, arrived, model, scratch, state):
    """One thread's share of a step. `waits` counts how often it has waited for the others; returns that.

    A sub-layer reads h, x after a norm. Its output is added to x where the norm is its own, and to h where it is the
    one behind the sub-layer before.
    """
    embeddings, learned, cos, sin, norm_kinds, norms, post, qk_norms, qkv, output, inner, outer, head, gated = model
    x, normed, projected, heads, activations, scores = scratch
    token_ids, positions, keys, values, logits = state
    num_layers, d_model = len(qkv), x.shape[1]
    x, projected, heads, activations = x[:num_rows], projected[:num_rows], heads[:num_rows], activations[:num_rows]
    num_kv_heads, d_head = keys.shape[2], keys.shape[4]
    num_heads = heads.shape[1] // d_head
    group = num_heads // num_kv_heads
    d_ff = outer.shape[2]
    h = normed[thread, :num_rows]
    if thread == 0:
        for row in range(num_rows):
            for d in range(d_model):
                x[row, d] = widen(embeddings[token_ids[row], d])
                if len(learned):
                    x[row, d] += widen(learned[positions[row], d])
    waits = _wait(arrived, waits, num_threads)
    for layer in range(num_layers):
        _norm(norm_kinds[2 * layer], norms[2 * layer], x, h)
        base = h if post else x
        first, last = _share(thread, num_threads, qkv.shape[1], _TILE)
        _product(qkv[layer], h, d_model, projected, first, last)
        waits = _wait(arrived, waits, num_threads)
        first, last = _share(thread, num_threads, num_rows * num_kv_heads)
        for unit in range(first, last):
            row, kv_head = unit // num_kv_heads, unit % num_kv_heads
            at = positions[row]
            k = projected[row, (num_heads + kv_head) * d_head :][:d_head]
            v = projected[row, (num_heads + num_kv_heads + kv_head) * d_head :][:d_head]
            _turn(k, qk_norms[layer, 1:], cos, sin, at)
            for d in range(d_head):
                keys[layer, row, kv_head, at, d] = narrow(k[d], keys)
                values[layer, row, kv_head, at, d] = narrow(v[d], values)
            for q_head in range(kv_head * group, (kv_head + 1) * group):
                q = projected[row, q_head * d_head :][:d_head]
                _turn(q, qk_norms[layer, :1], cos, sin, at)
                own_keys, own_values = keys[layer, row, kv_head], values[layer, row, kv_head]
                _attend(q, own_keys, own_values, at + 1, scores[thread], heads[row, q_head * d_head :][:d_head])
        waits = _wait(arrived, waits, num_threads)
        first, last = _share(thread, num_threads, d_model, _TILE)
        _product(output[layer], heads, heads.shape[1], projected, first, last)
        _add(base, projected, x, first, last)
        waits = _wait(arrived, waits, num_threads)

        _norm(norm_kinds[2 * layer + 1], norms[2 * layer + 1], x, h)
        first, last = _share(thread, num_threads, d_ff, _TILE)
        _product(inner[layer], h, d_model, activations, first, last)
        if gated:
            _product(inner[layer], h, d_model, activations, d_ff + first, d_ff + last)
        for row in range(num_rows):
            for f in range(first, last):
                a = activations[row, f]
                a /= np.float32(1) + _exp(-a)
                activations[row, f] = a * activations[row, d_ff + f] if gated else a
        waits = _wait(arrived, waits, num_threads)
        first, last = _share(thread, num_threads, d_model, _TILE)
        _product(outer[layer], activations, d_ff, projected, first, last)
        _add(base, projected, x, first, last)
        waits = _wait(arrived, waits, num_threads)
    _norm(norm_kinds[2 * num_layers], norms[2 * num_layers], x, h)
    first, last = _share(thread, num_threads, len(head), _TILE)
    _product(head, h, d_model, logits, first, last)
    return _wait(arrived, waits, num_threads)


def widen(number):
    """A float32, whether it is kept as such or as the upper half of its bits."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(number):
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


def narrow(number, like):
    """The inverse: rounded to the nearest number of `like`'s dtype, of two the even one."""
    raise NotImplementedError


@overload(narrow, inline="always")
def _narrow(number, like):
    if like.dtype == types.uint16:

        def to_upper_half(number, like):
            bits = np.float32(number).view(np.uint32)
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return to_upper_half
    return lambda number, like: number


@njit(fastmath=_FAST, error_model="numpy")
def _product(weights, x, d_in, out, first, last):
    """out[:, first:last] = x Wᵀ over the first `d_in` inputs.

    By tiles of four rows and four outputs, whose sums stay in registers: 16 products for 8 numbers that are read.
    Meanwhile the weights of the next tiles come from memory, a share with each.
    """
    num_rows = len(x)
    zeros = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for o in range(first, last, 4):
        row = 0
        while row + 4 <= num_rows and o + 4 <= last:
            if o + 8 <= last:
                share = 4 * d_in * weights.itemsize // (num_rows // 4)
                for byte in range(row // 4 * share, (row // 4 + 1) * share, _CACHE_LINE):
                    _prefetch(weights[o + 4], byte)
            w0, w1, w2, w3 = weights[o], weights[o + 1], weights[o + 2], weights[o + 3]
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            sums0 = sums1 = sums2 = sums3 = zeros  # of an output, a row each
            for i in range(d_in):
                inputs = x0[i], x1[i], x2[i], x3[i]
                sums0 = _add_products(sums0, widen(w0[i]), inputs)
                sums1 = _add_products(sums1, widen(w1[i]), inputs)
                sums2 = _add_products(sums2, widen(w2[i]), inputs)
                sums3 = _add_products(sums3, widen(w3[i]), inputs)
            for r in range(4):
                out[row + r, o : o + 4] = sums0[r], sums1[r], sums2[r], sums3[r]
            row += 4
        for r in range(row, num_rows):
            for each in range(o, min(o + 4, last)):
                out[r, each] = _dot(weights[each], x[r], d_in)


@njit(fastmath=_FAST, error_model="numpy")
def _add_products(sums, weight, inputs):
    return (
        sums[0] + weight * inputs[0],
        sums[1] + weight * inputs[1],
        sums[2] + weight * inputs[2],
        sums[3] + weight * inputs[3],
    )


@njit(fastmath=_FAST, error_model="numpy")
def _dot(weights, x, d_in):
    total = np.float32(0)
    for i in range(d_in):
        total += widen(weights[i]) * x[i]
    return total


@njit(fastmath=_FAST, error_model="numpy")
def _attend(q, keys, values, seen, scores, out):
    """out = softmax(q Kᵀ / sqrt(K)) V over the first `seen` positions of keys and values (S, K), by four at a time."""
    d_head = len(q)
    in_fours = seen // 4 * 4
    for s in range(0, in_fours, 4):
        k0, k1, k2, k3 = keys[s], keys[s + 1], keys[s + 2], keys[s + 3]
        sums = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for d in range(d_head):
            sums = _add_products(sums, q[d], (widen(k0[d]), widen(k1[d]), widen(k2[d]), widen(k3[d])))
        scores[s : s + 4] = sums
    for s in range(in_fours, seen):
        scores[s] = _dot(keys[s], q, d_head)

    scale = np.float32(1 / math.sqrt(d_head))
    largest = np.float32(-np.inf)
    for s in range(seen):
        largest = max(largest, scores[s])
    total = np.float32(0)
    for s in range(seen):
        scores[s] = _exp((scores[s] - largest) * scale)
        total += scores[s]

    out[:] = 0
    for s in range(0, in_fours, 4):
        p0, p1, p2, p3 = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
        v0, v1, v2, v3 = values[s], values[s + 1], values[s + 2], values[s + 3]
        for d in range(d_head):
            out[d] += p0 * widen(v0[d]) + p1 * widen(v1[d]) + p2 * widen(v2[d]) + p3 * widen(v3[d])
    for s in range(in_fours, seen):
        for d in range(d_head):
            out[d] += scores[s] * widen(values[s, d])
    for d in range(d_head):
        out[d] /= total


@njit(error_model="numpy")
def _exp(x):
    """exp(x) for x up to 88, by operations that the compiler can do for many numbers at once; 0 is 1e-38.

    With x = (n + f) ln 2 and |f| <= 1/2 it is 2^n, which is a float's exponent, times the Taylor series of 2^f, whose
    term of the seventh power is below half a unit in the last place.
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


@njit(fastmath=_FAST, error_model="numpy")
def _norm(kind, weight_and_bias, x, out):
    for row in range(len(x)):
        mean = np.float32(0)
        if kind == LAYER_NORM:
            mean = x[row].mean()
        squares = np.float32(0)
        for d in range(x.shape[1]):
            squares += (x[row, d] - mean) ** 2
        scale = np.float32(1) / np.sqrt(squares / np.float32(x.shape[1]) + _EPS)
        if kind == NO_NORM:
            scale = np.float32(1)
        for d in range(x.shape[1]):
            out[row, d] = (x[row, d] - mean) * scale * weight_and_bias[0, d] + weight_and_bias[1, d]


@njit(fastmath=_FAST, error_model="numpy")
def _turn(head, weight, cos, sin, position):
    """Normalise a query or a key, if there is a weight for that, and turn it to its position, if there are angles."""
    if weight.shape[1]:
        squares = np.float32(0)
        for d in range(len(head)):
            squares += head[d] ** 2
        scale = np.float32(1) / np.sqrt(squares / np.float32(len(head)) + _EPS)
        for d in range(len(head)):
            head[d] *= scale * weight[0, d]
    if len(cos):
        for d in range(0, len(head), 2):
            even, odd = head[d], head[d + 1]
            head[d] = even * cos[position, d] + odd * sin[position, d]
            head[d + 1] = odd * cos[position, d + 1] + even * sin[position, d + 1]


@njit(error_model="numpy")
def _add(base, change, x, first, last):
    for row in range(len(x)):
        for d in range(first, last):
            x[row, d] = base[row, d] + change[row, d]


@njit(error_model="numpy")
def _share(thread, num_threads, count, unit=1):
    """The first of a thread's share, and the first of the next; in whole units, which `_product` adds up alike."""
    units = (count + unit - 1) // unit
    first, last = units * thread // num_threads, units * (thread + 1) // num_threads
    return first * unit, min(last * unit, count)


@njit(error_model="numpy")
def _wait(arrived, waits, num_threads):
    """Wait until every thread has come here as often as this one; returns how often that is."""
    waits += 1
    _increment(arrived)
    spins = 0
    while _current(arrived) < waits * num_threads:
        spins = _pause(spins)
    return waits


@njit(error_model="numpy")
def _pause(times):
    """Wait a moment; returns how often that was. Soon another program may have the processor meanwhile."""
    if times > _SPINS:
        _yield_processor()
    return times + 1


@intrinsic
def _increment(_, counter):
    """counter[0] += 1, by several threads at once; what was written before can be seen by who sees the new value."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", pointer, context.get_constant(types.int64, 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(counter), generate


@intrinsic
def _current(_, counter):
    """counter[0], as other threads have made it."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(counter), generate


@intrinsic
def _prefetch(_, array, byte):
    """Ask for the cache line that holds that byte of the array, and go on."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(builder.bitcast(pointer, ir.IntType(8).as_pointer()), [arguments[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, number(0), number(3), number(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
