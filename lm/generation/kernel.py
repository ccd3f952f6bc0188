"""A decoding step as machine code, compiled by numba: on a CPU, where a step reads every weight for little work.

The weights may be float32 or bfloat16; all else is float32. numba has no bfloat16: it is the upper half of a float32,
kept as uint16. Several threads do a step together, each a share of the outputs of every product and of the heads, and
wait for each other where one reads what another wrote.

Shapes: L layers, B rows, S positions, V vocabulary, D d_model, H heads, G key/value heads, K d_head, F width inside the
feed-forward layer, N = 2L + 1 norms: what each sub-layer reads, and the head, passes one.
"""

import math

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

NO_NORM, RMS_NORM, LAYER_NORM = 0, 1, 2
_EPS = np.float32(1e-5)
_SPINS = 2000

# Sums may be taken in any order, as in every fast product.
_FAST = {"reassoc", "contract", "nsz"}

_yield_processor = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True, cache=True, error_model="numpy")
def step(thread, num_threads, arrived, model, scratch, token_ids, positions, keys, values, logits):
    """One thread's share; see `lm.generation.compiled`, which packs `model` and `scratch`.

    Every thread calls it with its number and the same arrays. `arrived` is a counter that is 0 before. Row b brings
    `token_ids[b]` at `positions[b]`; `keys` and `values` (L, B, G, K, S) get what it adds, `logits` (B, V) the outcome.

    A sub-layer reads h, x after a norm. Its output is added to x where the norm is its own, and to h where it is the
    one behind the sub-layer before.
    """
    embeddings, learned, cos, sin, norm_kinds, norms, post, qk_norms, qkv, output, inner, outer, head, gated = model
    x, normed, projected, heads, activations, scores = scratch
    waits = 0
    num_layers, d_model, num_rows = len(qkv), x.shape[1], len(x)
    num_kv_heads, d_head = keys.shape[2], keys.shape[3]
    num_heads = heads.shape[1] // d_head
    group = num_heads // num_kv_heads
    d_ff = outer.shape[2]
    h = normed[thread]
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
        first, last = _share(thread, num_threads, qkv.shape[1])
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
                keys[layer, row, kv_head, d, at] = narrow(k[d], keys)
                values[layer, row, kv_head, d, at] = narrow(v[d], values)
            for q_head in range(kv_head * group, (kv_head + 1) * group):
                q = projected[row, q_head * d_head :][:d_head]
                _turn(q, qk_norms[layer, :1], cos, sin, at)
                own_keys, own_values = keys[layer, row, kv_head], values[layer, row, kv_head]
                _attend(q, own_keys, own_values, at + 1, scores[thread], heads[row, q_head * d_head :][:d_head])
        waits = _wait(arrived, waits, num_threads)
        first, last = _share(thread, num_threads, d_model)
        _product(output[layer], heads, heads.shape[1], projected, first, last)
        _add(base, projected, x, first, last)
        waits = _wait(arrived, waits, num_threads)

        _norm(norm_kinds[2 * layer + 1], norms[2 * layer + 1], x, h)
        first, last = _share(thread, num_threads, d_ff)
        _product(inner[layer], h, d_model, activations, first, last)
        if gated:
            _product(inner[layer], h, d_model, activations, d_ff + first, d_ff + last)
        for row in range(num_rows):
            for f in range(first, last):
                a = activations[row, f]
                a /= np.float32(1) + _exp(-a)
                activations[row, f] = a * activations[row, d_ff + f] if gated else a
        waits = _wait(arrived, waits, num_threads)
        first, last = _share(thread, num_threads, d_model)
        _product(outer[layer], activations, d_ff, projected, first, last)
        _add(base, projected, x, first, last)
        waits = _wait(arrived, waits, num_threads)
    _norm(norm_kinds[2 * num_layers], norms[2 * num_layers], x, h)
    first, last = _share(thread, num_threads, len(head))
    _product(head, h, d_model, logits, first, last)


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
    """out[:, first:last] = x Wᵀ over the first `d_in` inputs; a weight that was read serves four rows."""
    num_rows = len(x)
    for o in range(first, last):
        w = weights[o]
        row = 0
        while row + 4 <= num_rows:
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            sum0 = sum1 = sum2 = sum3 = np.float32(0)
            for i in range(d_in):
                weight = widen(w[i])
                sum0 += weight * x0[i]
                sum1 += weight * x1[i]
                sum2 += weight * x2[i]
                sum3 += weight * x3[i]
            out[row, o], out[row + 1, o], out[row + 2, o], out[row + 3, o] = sum0, sum1, sum2, sum3
            row += 4
        while row < num_rows:
            x0 = x[row]
            sum0 = np.float32(0)
            for i in range(d_in):
                sum0 += widen(w[i]) * x0[i]
            out[row, o] = sum0
            row += 1


@njit(fastmath=_FAST, error_model="numpy")
def _attend(q, keys, values, seen, scores, out):
    """out = softmax(q K / sqrt(K)) Vᵀ over the first `seen` positions of keys and values (K, S).

    The positions lie side by side: every loop is as long as the text, and none as short as a head.
    """
    d_head = len(q)
    scores[:seen] = 0
    for d in range(0, d_head, 2):
        e = min(d + 1, d_head - 1)
        q0, q1 = q[d], q[e] if e > d else np.float32(0)
        k0, k1 = keys[d], keys[e]
        for s in range(seen):
            scores[s] += q0 * widen(k0[s]) + q1 * widen(k1[s])
    scale = np.float32(1 / math.sqrt(d_head))
    largest = np.float32(-np.inf)
    for s in range(seen):
        largest = max(largest, scores[s])
    total = np.float32(0)
    for s in range(seen):
        scores[s] = _exp((scores[s] - largest) * scale)
        total += scores[s]
    for d in range(d_head):
        v = values[d]
        mean = np.float32(0)
        for s in range(seen):
            mean += scores[s] * widen(v[s])
        out[d] = mean / total


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
def _share(thread, num_threads, count):
    return count * thread // num_threads, count * (thread + 1) // num_threads


@njit(error_model="numpy")
def _wait(arrived, waits, num_threads):
    """Wait until every thread has come here as often as this one; returns how often that is."""
    waits += 1
    _increment(arrived)
    spins = 0
    while _current(arrived) < waits * num_threads:
        spins += 1
        if spins > _SPINS:  # another program has the other processor
            _yield_processor()
    return waits


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
