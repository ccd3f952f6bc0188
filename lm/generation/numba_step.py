"""One decoding step as machine code, compiled by numba for the CPU.

With few rows, a step does little arithmetic per weight, and the overhead of many separate PyTorch operations would be
a large part of its time.

The weights are float32 or bfloat16, and everything else is float32. Since numba has no bfloat16, such weights are
stored as uint16, the upper half of a float32. Several threads compute a step together: each computes a part of the
outputs of every matrix multiplication and some of the attention heads. At a barrier they wait for each other before
they read what another thread wrote.

Shapes: L layers, B rows, S positions, V vocabulary, D d_model, H heads, G key/value heads, K d_head, F d_ff,
N = 2L + 1 norms, one before each sublayer and one before the output head.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

NO_NORM, RMS_NORM, LAYER_NORM = 0, 1, 2
_EPS = np.float32(1e-5)
_MAX_SPINS = 2000  # checks of a counter before a waiting thread yields its processor: a few microseconds
_MAX_YIELDS = 20_000  # checks before a waiting worker sleeps: a few milliseconds
_MAX_SLEEP = 10_000  # microseconds
_TILE = 4  # rows and outputs per tile of a matrix multiplication
_CACHE_LINE = 64  # bytes

# Sums may be computed in any order, as in every fast matrix multiplication.
_FAST = {"reassoc", "contract", "nsz"}

_yield_processor = types.ExternalFunction("sched_yield", types.int32())
_sleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@njit(nogil=True, cache=True, error_model="numpy")
def run_step(num_threads, commands, arrived, model, scratch, token_ids, positions, keys, values, logits):
    """Compute one step together with the threads that run `worker_loop`.

    Row r of the first `commands[1]` rows appends token `token_ids[r]` at position `positions[r]`. Its keys and values
    are written into the cache, and the logits of the next token into `logits[r]`. The whole step is machine code, so
    Ctrl-C cannot interrupt it halfway.

    Args:
        commands: (2,) int64, the number of steps requested so far and the number of rows of the next one.
        arrived: (1,) int64, the counter of the barrier, initially 0.
        model, scratch: tuples of arrays and switches, packed by `lm.generation.numba_decoder`.
        token_ids, positions: (B,) int64.
        keys, values: (L, B, G, S, K), the cache.
        logits: (B, V) float32.
    """
    barriers = _atomic_load(arrived) // num_threads  # exact, because no thread is in a step now
    _atomic_increment(commands)
    state = token_ids, positions, keys, values, logits
    _step(0, barriers, num_threads, commands[1], arrived, model, scratch, state)


@njit(nogil=True, cache=True, error_model="numpy")
def worker_loop(thread, num_threads, commands, arrived, model, scratch, token_ids, positions, keys, values, logits):
    """Compute one thread's part of every step, until `commands[0]` is negative.

    `thread` is 1 to `num_threads` - 1; thread 0 is the one that calls `run_step`, with the same arrays.
    """
    barriers = steps = 0
    state = token_ids, positions, keys, values, logits
    while True:
        num_pauses = 0
        while _atomic_load(commands) == steps:
            num_pauses = _pause(num_pauses)
            if num_pauses > _MAX_YIELDS:  # no text is being generated: check less and less often
                _sleep(min(num_pauses - _MAX_YIELDS, _MAX_SLEEP))
        steps = _atomic_load(commands)
        if steps < 0:
            return
        barriers = _step(thread, barriers, num_threads, commands[1], arrived, model, scratch, state)


@njit(error_model="numpy")
def _step(thread, barriers, num_threads, num_rows, arrived, model, scratch, state):
    """Compute one thread's part of a step.

    `barriers` is the number of barriers that the thread has passed; the new number is returned.

    Each sublayer reads h = norm(x). With pre-norm, x is the residual stream, the norm belongs to the sublayer that
    reads h, and its output is added to x. With post-norm, the norm belongs to the sublayer before, so h is the residual
    stream, and the output is added to h.

    Shapes of `model`: `token_embeddings` (V, D), `position_embeddings` (S, D) or empty, `cos` and `sin` (S, K) or
    empty, `norm_kinds` (N,), `norms` (N, 2, D) with weight and bias, `qk_norms` (L, 2, K) or (L, 2, 0), `qkv`
    (L, (H + 2G)K, D), `output` (L, D, HK), `w1_w3` (L, 2F, D) if `is_gated` and otherwise (L, F, D), `w2` (L, D, F),
    `lm_head` (V, D). Shapes of `scratch`: `x` (B, D), `normed` (threads, B, D), `projected` (B, at least D and
    (H + 2G)K), `heads` (B, HK), `activations` (B, 2F) or (B, F), `scores` (threads, S).
    """
    (
        token_embeddings,
        position_embeddings,
        cos,
        sin,
        norm_kinds,
        norms,
        is_post_norm,
        qk_norms,
        qkv,
        output,
        w1_w3,
        w2,
        lm_head,
        is_gated,
    ) = model
    x, normed, projected, heads, activations, scores = scratch
    token_ids, positions, keys, values, logits = state
    num_layers, d_model = len(qkv), x.shape[1]
    x, projected, heads, activations = x[:num_rows], projected[:num_rows], heads[:num_rows], activations[:num_rows]
    num_kv_heads, d_head = keys.shape[2], keys.shape[4]
    num_heads = heads.shape[1] // d_head
    group_size = num_heads // num_kv_heads  # query heads that share a key/value head
    d_ff = w2.shape[2]
    h = normed[thread, :num_rows]  # every thread computes all norms for itself, which saves a barrier
    if thread == 0:
        for row in range(num_rows):
            for d in range(d_model):
                x[row, d] = widen(token_embeddings[token_ids[row], d])
                if len(position_embeddings):
                    x[row, d] += widen(position_embeddings[positions[row], d])
    barriers = _barrier(arrived, barriers, num_threads)
    for layer in range(num_layers):
        _norm(norm_kinds[2 * layer], norms[2 * layer], x, h)
        residual = h if is_post_norm else x
        first, last = _partition(thread, num_threads, qkv.shape[1], _TILE)
        _matmul(qkv[layer], h, d_model, projected, first, last)
        barriers = _barrier(arrived, barriers, num_threads)
        first, last = _partition(thread, num_threads, num_rows * num_kv_heads)
        for unit in range(first, last):
            row, kv_head = unit // num_kv_heads, unit % num_kv_heads
            position = positions[row]
            k = projected[row, (num_heads + kv_head) * d_head :][:d_head]
            v = projected[row, (num_heads + num_kv_heads + kv_head) * d_head :][:d_head]
            _rotate(k, qk_norms[layer, 1:], cos, sin, position)
            for d in range(d_head):
                keys[layer, row, kv_head, position, d] = narrow(k[d], keys)
                values[layer, row, kv_head, position, d] = narrow(v[d], values)
            for q_head in range(kv_head * group_size, (kv_head + 1) * group_size):
                q = projected[row, q_head * d_head :][:d_head]
                _rotate(q, qk_norms[layer, :1], cos, sin, position)
                k_cache, v_cache = keys[layer, row, kv_head], values[layer, row, kv_head]
                _attend(q, k_cache, v_cache, position + 1, scores[thread], heads[row, q_head * d_head :][:d_head])
        barriers = _barrier(arrived, barriers, num_threads)
        first, last = _partition(thread, num_threads, d_model, _TILE)
        _matmul(output[layer], heads, heads.shape[1], projected, first, last)
        _add(residual, projected, x, first, last)
        barriers = _barrier(arrived, barriers, num_threads)

        _norm(norm_kinds[2 * layer + 1], norms[2 * layer + 1], x, h)
        first, last = _partition(thread, num_threads, d_ff, _TILE)
        _matmul(w1_w3[layer], h, d_model, activations, first, last)
        if is_gated:
            _matmul(w1_w3[layer], h, d_model, activations, d_ff + first, d_ff + last)
        for row in range(num_rows):
            for f in range(first, last):
                a = activations[row, f]
                a /= np.float32(1) + _exp(-a)  # SiLU
                activations[row, f] = a * activations[row, d_ff + f] if is_gated else a
        barriers = _barrier(arrived, barriers, num_threads)
        first, last = _partition(thread, num_threads, d_model, _TILE)
        _matmul(w2[layer], activations, d_ff, projected, first, last)
        _add(residual, projected, x, first, last)
        barriers = _barrier(arrived, barriers, num_threads)
    _norm(norm_kinds[2 * num_layers], norms[2 * num_layers], x, h)
    first, last = _partition(thread, num_threads, len(lm_head), _TILE)
    _matmul(lm_head, h, d_model, logits, first, last)
    return _barrier(arrived, barriers, num_threads)


def widen(number):
    """Convert a stored number to float32: a float32 as it is, a uint16 as the upper half of the bits."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(number):
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


def narrow(number, like):
    """Convert a float32 to the dtype of the array `like`: the inverse of `widen`, rounding to nearest, ties to even."""
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
def _matmul(weights, x, d_in, out, first, last):
    """out[:, first:last] = x Wᵀ, summed over the first `d_in` inputs; `weights` is (outputs, inputs).

    The work is done in tiles of four rows by four outputs whose sums stay in registers, so that 8 numbers read give 16
    products. Each tile also prefetches a part of the weights of the next four outputs.
    """
    num_rows = len(x)
    zeros = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for o in range(first, last, 4):
        row = 0
        while row + 4 <= num_rows and o + 4 <= last:
            if o + 8 <= last:
                num_bytes = 4 * d_in * weights.itemsize // (num_rows // 4)
                for byte in range(row // 4 * num_bytes, (row // 4 + 1) * num_bytes, _CACHE_LINE):
                    _prefetch(weights[o + 4], byte)
            w0, w1, w2, w3 = weights[o], weights[o + 1], weights[o + 2], weights[o + 3]
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            sums0 = sums1 = sums2 = sums3 = zeros  # one tuple per output, one sum per row
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
            for remaining in range(o, min(o + 4, last)):
                out[r, remaining] = _dot(weights[remaining], x[r], d_in)


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
def _attend(q, keys, values, length, scores, out):
    """out = softmax(q Kᵀ / sqrt(K)) V over the first `length` of the keys and values (S, K), four positions at a time.

    `scores` (S,) is overwritten.
    """
    d_head = len(q)
    blocked = length // 4 * 4  # positions in whole blocks of four
    for s in range(0, blocked, 4):
        k0, k1, k2, k3 = keys[s], keys[s + 1], keys[s + 2], keys[s + 3]
        sums = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for d in range(d_head):
            sums = _add_products(sums, q[d], (widen(k0[d]), widen(k1[d]), widen(k2[d]), widen(k3[d])))
        scores[s : s + 4] = sums
    for s in range(blocked, length):
        scores[s] = _dot(keys[s], q, d_head)

    scale = np.float32(1 / math.sqrt(d_head))
    largest = np.float32(-np.inf)
    for s in range(length):
        largest = max(largest, scores[s])
    total = np.float32(0)
    for s in range(length):
        scores[s] = _exp((scores[s] - largest) * scale)
        total += scores[s]

    out[:] = 0
    for s in range(0, blocked, 4):
        p0, p1, p2, p3 = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
        v0, v1, v2, v3 = values[s], values[s + 1], values[s + 2], values[s + 3]
        for d in range(d_head):
            out[d] += p0 * widen(v0[d]) + p1 * widen(v1[d]) + p2 * widen(v2[d]) + p3 * widen(v3[d])
    for s in range(blocked, length):
        for d in range(d_head):
            out[d] += scores[s] * widen(values[s, d])
    for d in range(d_head):
        out[d] /= total


@njit(error_model="numpy")
def _exp(x):
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


@njit(fastmath=_FAST, error_model="numpy")
def _norm(kind, weight_and_bias, x, out):
    """out = the norm of each row of x (B, D), with `weight_and_bias` (2, D); for NO_NORM only those are applied."""
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
def _rotate(head, weight, cos, sin, position):
    """Apply, in place, QK norm to a query or key unless `weight` (1, K) is empty, and RoPE unless `cos` (S, K) is."""
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
def _add(residual, update, x, first, last):
    """x[:, first:last] = residual + update."""
    for row in range(len(x)):
        for d in range(first, last):
            x[row, d] = residual[row, d] + update[row, d]


@njit(error_model="numpy")
def _partition(thread, num_threads, count, unit=1):
    """Return the range [first, last) of `count` items that a thread computes.

    A range starts at a multiple of `unit`. With the tile of `_matmul` as the unit, every output is summed in the same
    order for any number of threads.
    """
    units = (count + unit - 1) // unit
    first, last = units * thread // num_threads, units * (thread + 1) // num_threads
    return first * unit, min(last * unit, count)


@njit(error_model="numpy")
def _barrier(arrived, barriers, num_threads):
    """Wait until every thread has reached this barrier; return the number of barriers passed, including this one."""
    barriers += 1
    _atomic_increment(arrived)
    num_pauses = 0
    while _atomic_load(arrived) < barriers * num_threads:
        num_pauses = _pause(num_pauses)
    return barriers


@njit(error_model="numpy")
def _pause(num_pauses):
    """Wait for a moment and return the number of pauses so far; after `_MAX_SPINS`, let other threads run meanwhile."""
    if num_pauses > _MAX_SPINS:
        _yield_processor()
    return num_pauses + 1


@intrinsic
def _atomic_increment(_, counter):
    """counter[0] += 1, safe with several threads: a thread that sees the new value also sees all earlier writes."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", pointer, context.get_constant(types.int64, 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(counter), generate


@intrinsic
def _atomic_load(_, counter):
    """Return counter[0], including the changes that other threads made."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(counter), generate


@intrinsic
def _prefetch(_, array, byte):
    """Start loading the cache line with this byte of the array, without waiting for it."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(builder.bitcast(pointer, ir.IntType(8).as_pointer()), [arguments[1]])
        int32 = ir.IntType(32)
        prefetch_type = ir.FunctionType(ir.VoidType(), [pointer.type, int32, int32, int32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], prefetch_type)
        builder.call(prefetch, [pointer, int32(0), int32(3), int32(1)])  # for reading, into all cache levels, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
