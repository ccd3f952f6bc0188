"""One decoding step, compiled by numba for the CPU.

With few rows, a step does little arithmetic per weight, and the overhead of many separate PyTorch operations would be
a large part of its time. The weights are float32, bfloat16 or int8, and everything else is float32 (the keys and values
may be bfloat16). Since numba has no bfloat16, such numbers are uint16, the upper half of a float32.

Several threads compute a step together: each computes a part of the outputs of every matrix product and some of the
attention heads. At a barrier they wait for each other before they read what another thread wrote.

Sizes, types and addresses come from a plan (lm/generation/kernels/plan.py), so one compilation serves every model.
"""

import numpy as np

from lm.generation.kernels import plan as at
from lm.generation.kernels.attention import attend, clear_values, widen, write_key, write_value
from lm.generation.kernels.elementwise import normalize, qk_norm, rotate, silu
from lm.generation.kernels.layout import BLOCK, FLOAT32, INT8, PANEL, QUANTIZED_BLOCK, panel_bytes, round_up
from lm.generation.kernels.products import multiply, quantize
from lm.generation.kernels.threads import barrier, first_of, wait_for_more
from lm.generation.kernels.tiles import MOST_ROWS
from lm.tokenizer.text.fast.intrinsics import (
    Int,
    compiled,
    fetch_add,
    floats_at,
    inlined,
    int8s_at,
    int64s_at,
    kernel,
    uint16s_at,
)

_NUM_MATRICES = 7
_round_up, _panel_bytes = inlined(round_up), compiled(panel_bytes)
_FLOAT16 = np.float32(2.0**112)  # what a float16 is multiplied by, shifted to the place of a float32's bits


@kernel
def run_steps(thread: Int, address: Int):
    """Compute a step: thread 0 requests it and computes its part; the others wait for requests until they end.

    Row r of the first `NUM_ROWS` rows reads token `TOKEN_IDS`[r] at position `POSITIONS`[r] of text `TEXTS`[r]. Its
    keys and values are written into the cache. The logits of the token that follows row `OUTPUTS`[i] are written into
    `LOGITS`[i]. A step is machine code from beginning to end, so Ctrl-C cannot interrupt it halfway.

    `thread` 1 to `NUM_THREADS` - 1 returns when the number of commands becomes negative. `address` is that of the plan.
    """
    plan = int64s_at(address)
    commands, arrived = int64s_at(plan[at.COMMANDS]), int64s_at(plan[at.ARRIVED])
    if thread == 0:
        barriers = arrived[0] // plan[at.NUM_THREADS]  # exact, because no thread is in a step now
        fetch_add(commands, 0)
        _step(thread, barriers, plan)
        return 0
    barriers = steps = np.int64(0)  # for the literal 0, numba would compile everything that gets it a second time
    while True:
        steps = wait_for_more(commands, steps)
        if steps < 0:
            return 0
        barriers = _step(thread, barriers, plan)


@compiled
def _step(thread, barriers, plan):
    """Compute one thread's part of a step.

    `barriers` is the number of barriers that the thread has passed; the new number is returned.

    Each sublayer reads h = norm(x). With pre-norm, x is the residual stream, the norm belongs to the sublayer that
    reads h, and its output is added to x. With post-norm, the norm belongs to the sublayer before, so h is the residual
    stream, and the output is added to h.
    """
    num_threads, num_rows, num_layers = plan[at.NUM_THREADS], plan[at.NUM_ROWS], plan[at.NUM_LAYERS]
    d_model, d_ff, num_heads, d_head = plan[at.D_MODEL], plan[at.D_FF], plan[at.NUM_HEADS], plan[at.D_HEAD]
    d_heads, d_kv_heads = num_heads * d_head, plan[at.NUM_KV_HEADS] * d_head
    k_at, v_at = _round_up(d_heads, PANEL), _round_up(d_heads, PANEL) + _round_up(d_kv_heads, PANEL)
    # From here on, a stride is the number of floats from one row to the next.
    x_stride, heads_stride = _round_up(d_model, BLOCK), _round_up(d_heads, BLOCK)
    ff_stride = _round_up(d_ff, BLOCK)
    projected_stride = max(v_at + _round_up(d_kv_heads, PANEL), _round_up(d_model, PANEL))
    x, heads, gates, activations = plan[at.X], plan[at.HEADS], plan[at.GATES], plan[at.ACTIVATIONS]
    h = plan[at.NORMED] + 4 * thread * num_rows * x_stride  # every thread computes all norms, which saves a barrier
    projected, residual = plan[at.PROJECTED], h if plan[at.IS_POST_NORM] else x
    arrived, matrices = int64s_at(plan[at.ARRIVED]), int64s_at(plan[at.MATRICES])
    if thread == 0:
        _embed(plan, floats_at(x), x_stride)
    barriers = barrier(arrived, barriers, num_threads)
    for layer in range(num_layers):
        first_matrix = layer * _NUM_MATRICES
        _norm(plan, 2 * layer, x, h, x_stride)
        inputs = _inputs(thread, plan, num_rows, h, x_stride, d_model)
        _multiply(thread, plan, num_rows, matrices[first_matrix], inputs, d_model, projected, projected_stride, d_heads)
        to = projected + 4 * k_at
        _multiply(thread, plan, num_rows, matrices[first_matrix + 1], inputs, d_model, to, projected_stride, d_kv_heads)
        to = projected + 4 * v_at
        _multiply(thread, plan, num_rows, matrices[first_matrix + 2], inputs, d_model, to, projected_stride, d_kv_heads)
        barriers = barrier(arrived, barriers, num_threads)
        _cache(thread, plan, layer, projected_stride, k_at, v_at)
        if plan[at.IS_PROMPT]:  # a token attends to others of its text that another thread may have written
            barriers = barrier(arrived, barriers, num_threads)
        _attention(thread, plan, layer, projected_stride, heads_stride)
        barriers = barrier(arrived, barriers, num_threads)
        inputs = _inputs(thread, plan, num_rows, heads, heads_stride, d_heads)
        _multiply(
            thread, plan, num_rows, matrices[first_matrix + 3], inputs, d_heads, projected, projected_stride, d_model
        )
        _add(thread, plan, residual, x_stride, projected, projected_stride, x)
        barriers = barrier(arrived, barriers, num_threads)

        _norm(plan, 2 * layer + 1, x, h, x_stride)
        inputs = _inputs(thread, plan, num_rows, h, x_stride, d_model)
        _multiply(thread, plan, num_rows, matrices[first_matrix + 4], inputs, d_model, gates, ff_stride, d_ff)
        if plan[at.IS_GATED]:
            _multiply(thread, plan, num_rows, matrices[first_matrix + 5], inputs, d_model, activations, ff_stride, d_ff)
        _silu(thread, plan, gates, activations, ff_stride)
        barriers = barrier(arrived, barriers, num_threads)
        inputs = _inputs(thread, plan, num_rows, gates, ff_stride, d_ff)
        _multiply(
            thread, plan, num_rows, matrices[first_matrix + 6], inputs, d_ff, projected, projected_stride, d_model
        )
        _add(thread, plan, residual, x_stride, projected, projected_stride, x)
        barriers = barrier(arrived, barriers, num_threads)
    _norm(plan, 2 * num_layers, x, h, x_stride)
    num_rows, outputs = plan[at.NUM_OUTPUTS], int64s_at(plan[at.OUTPUTS])
    for row in range(num_rows):  # row outputs[row] comes after it, so nothing is overwritten that is still needed
        for d in range(d_model):
            floats_at(h)[row * x_stride + d] = floats_at(h)[outputs[row] * x_stride + d]
    inputs = _inputs(thread, plan, num_rows, h, x_stride, d_model)
    logits, vocab_size = plan[at.LOGITS], plan[at.VOCAB_SIZE]
    stride = _round_up(vocab_size, PANEL)
    _multiply(thread, plan, num_rows, plan[at.LM_HEAD], inputs, d_model, logits, stride, vocab_size)
    return barrier(arrived, barriers, num_threads)


@compiled
def _embed(plan, x, stride):
    """x = the embeddings of the tokens, plus those of their positions if the model has learned ones."""
    d_model, table = plan[at.D_MODEL], plan[at.TOKEN_EMBEDDINGS]
    token_ids, positions = int64s_at(plan[at.TOKEN_IDS]), int64s_at(plan[at.POSITIONS])
    num_blocks = _round_up(d_model, BLOCK) // BLOCK
    for row in range(plan[at.NUM_ROWS]):
        to, token_id = row * stride, token_ids[row]
        if plan[at.KIND] == FLOAT32:
            for d in range(d_model):
                x[to + d] = floats_at(table)[token_id * d_model + d]
        elif plan[at.KIND] == INT8:
            panel = table + token_id // PANEL * _panel_bytes(INT8, num_blocks)
            scales = uint16s_at(panel + num_blocks * PANEL * BLOCK)
            for d in range(d_model):
                weight = int8s_at(panel + (d // 4 * PANEL + token_id % PANEL) * 4)[d % 4]
                scale = scales[d // BLOCK * PANEL + token_id % PANEL]
                # The weight plus 128 wraps around to the weight minus 128; the scale is a float16 without sign.
                number = np.float32(np.int32(weight) + (np.int32(128) if weight < 0 else np.int32(-128)))
                x[to + d] = number * (np.uint32(np.uint32(scale) << np.uint32(13)).view(np.float32) * _FLOAT16)
        else:
            for d in range(d_model):
                x[to + d] = widen(uint16s_at(table)[token_id * d_model + d])
        learned, place = plan[at.POSITION_EMBEDDINGS], positions[row] * d_model
        if learned and plan[at.CACHE_KIND] == FLOAT32:
            for d in range(d_model):
                x[to + d] += floats_at(learned)[place + d]
        elif learned:
            for d in range(d_model):
                x[to + d] += widen(uint16s_at(learned)[place + d])


@compiled
def _inputs(thread, plan, num_rows, x, stride, width):
    """The address of the rows of x as inputs of `_multiply`: x itself, or for int8 weights a copy in eight bits."""
    if plan[at.KIND] != INT8:
        return x
    num_blocks = _round_up(width, BLOCK) // BLOCK
    copy = plan[at.QUANTIZED] + thread * plan[at.NUM_ROWS] * _quantized_stride(plan)
    quantize(x, 4 * stride, num_blocks, num_rows, copy, num_blocks * QUANTIZED_BLOCK)
    return copy


@inlined
def _quantized_stride(plan):
    widest = max(plan[at.D_MODEL], plan[at.NUM_HEADS] * plan[at.D_HEAD], plan[at.D_FF])
    return _round_up(widest, BLOCK) // BLOCK * QUANTIZED_BLOCK


@compiled
def _multiply(thread, plan, num_rows, panels, inputs, d_in, out, out_stride, d_out):
    """The thread's part of the outputs of a matrix product, for all rows."""
    num_blocks = _round_up(d_in, BLOCK) // BLOCK
    num_panels = _round_up(d_out, PANEL) // PANEL
    first = first_of(thread, plan[at.NUM_THREADS], num_panels)
    last = first_of(thread + 1, plan[at.NUM_THREADS], num_panels)
    stride = num_blocks * QUANTIZED_BLOCK if plan[at.KIND] == INT8 else num_blocks * BLOCK * 4
    panel_stride = _panel_bytes(plan[at.KIND], num_blocks)
    panels, out = panels + first * panel_stride, out + 4 * first * PANEL
    multiply(
        plan[at.PRODUCT], panels, panel_stride, last - first, num_blocks, inputs, stride, num_rows, out, 4 * out_stride
    )


@compiled
def _cache(thread, plan, layer, projected_stride, k_at, v_at):
    """Write keys and values into the cache, for the thread's part of the rows and key/value heads."""
    d_head, num_kv_heads, num_columns, kind = (
        plan[at.D_HEAD],
        plan[at.NUM_KV_HEADS],
        plan[at.CACHE_COLUMNS],
        plan[at.CACHE_KIND],
    )
    texts = int64s_at(plan[at.TEXTS])
    k_norm = plan[at.QK_NORMS] + 4 * (2 * layer + 1) * d_head if plan[at.QK_NORMS] else 0
    first, last = _heads(thread, plan)
    for unit in range(first, last):
        row, kv_head = unit // num_kv_heads, unit % num_kv_heads
        position = int64s_at(plan[at.POSITIONS])[row]
        projected = plan[at.PROJECTED] + 4 * row * projected_stride
        k = floats_at(projected + 4 * (k_at + kv_head * d_head))
        v = floats_at(projected + 4 * (v_at + kv_head * d_head))
        _rotate(plan, k, k_norm, position)
        keys, values = _cached(plan, at.KEYS, layer, row, kv_head), _cached(plan, at.VALUES, layer, row, kv_head)
        write_key(kind, keys, position, k, d_head)
        write_value(kind, values, num_columns, position, v, d_head)
        is_last = row + 1 == plan[at.NUM_ROWS] or texts[row + 1] != texts[row]
        if is_last and (plan[at.IS_PROMPT] or position % BLOCK == 0):
            clear_values(kind, values, num_columns, position + 1, d_head)


@compiled
def _attention(thread, plan, layer, projected_stride, heads_stride):
    """Attend to the cache, for the thread's part of the rows and key/value heads."""
    d_head, num_kv_heads = plan[at.D_HEAD], plan[at.NUM_KV_HEADS]
    group_size = plan[at.NUM_HEADS] // num_kv_heads  # query heads that share a key/value head
    q_norm = plan[at.QK_NORMS] + 4 * 2 * layer * d_head if plan[at.QK_NORMS] else 0
    # Rows of a prompt attend together, those of one text at a time. A row of another step is a text of its own.
    together = MOST_ROWS if plan[at.IS_PROMPT] else 1
    scores = plan[at.SCORES] + 4 * thread * MOST_ROWS * (plan[at.CACHE_COLUMNS] + _round_up(d_head, PANEL))
    texts, positions = int64s_at(plan[at.TEXTS]), int64s_at(plan[at.POSITIONS])
    count = _round_up(plan[at.NUM_ROWS], together) // together * num_kv_heads
    for unit in range(first_of(thread, plan[at.NUM_THREADS], count), first_of(thread + 1, plan[at.NUM_THREADS], count)):
        row, kv_head = unit // num_kv_heads * together, unit % num_kv_heads
        end = min(row + together, plan[at.NUM_ROWS])
        while row < end:
            num_rows = 1
            while row + num_rows < end and texts[row + num_rows] == texts[row]:
                num_rows += 1
            keys, values = _cached(plan, at.KEYS, layer, row, kv_head), _cached(plan, at.VALUES, layer, row, kv_head)
            for q_head in range(kv_head * group_size, (kv_head + 1) * group_size):
                q = plan[at.PROJECTED] + 4 * (row * projected_stride + q_head * d_head)
                out = plan[at.HEADS] + 4 * (row * heads_stride + q_head * d_head)
                for query in range(num_rows):
                    _rotate(plan, floats_at(q + 4 * query * projected_stride), q_norm, positions[row + query])
                attend(
                    plan[at.CACHE_PRODUCT],
                    plan[at.CACHE_KIND],
                    q,
                    4 * projected_stride,
                    num_rows,
                    positions[row] + 1,
                    keys,
                    values,
                    plan[at.CACHE_COLUMNS],
                    d_head,
                    scores,
                    out,
                    4 * heads_stride,
                )
            row += num_rows


@inlined
def _heads(thread, plan):
    """The range of the key/value heads of all rows that a thread writes."""
    count = plan[at.NUM_ROWS] * plan[at.NUM_KV_HEADS]
    return first_of(thread, plan[at.NUM_THREADS], count), first_of(thread + 1, plan[at.NUM_THREADS], count)


@inlined
def _cached(plan, array, layer, row, kv_head):
    """The address in the cache where the keys or the values of a row's text and head begin."""
    text = int64s_at(plan[at.TEXTS])[row]
    head = (layer * plan[at.CACHE_ROWS] + text) * plan[at.NUM_KV_HEADS] + kv_head
    size = 4 if plan[at.CACHE_KIND] == FLOAT32 else 2
    return plan[array] + head * plan[at.CACHE_COLUMNS] * _round_up(plan[at.D_HEAD], BLOCK) * size


@compiled
def _norm(plan, number, source, target, stride):
    """The norm of each row of the array at `source`, written to `target`."""
    d_model, kind = plan[at.D_MODEL], int64s_at(plan[at.NORM_KINDS])[number]
    weight = floats_at(plan[at.NORMS] + 4 * number * 2 * d_model)
    bias = floats_at(plan[at.NORMS] + 4 * (number * 2 + 1) * d_model)
    for row in range(plan[at.NUM_ROWS]):
        offset = 4 * row * stride
        normalize(kind, floats_at(source + offset), weight, bias, floats_at(target + offset), d_model)


@compiled
def _rotate(plan, head, norm, position):
    """Apply to a query or key, in place, QK norm if the model has it, and RoPE."""
    d_head = plan[at.D_HEAD]
    if norm:
        qk_norm(head, floats_at(norm), d_head)
    if plan[at.COS]:
        place = 4 * position * d_head
        rotate(head, floats_at(plan[at.COS] + place), floats_at(plan[at.SIN] + place), d_head)


@compiled
def _silu(thread, plan, gates, activations, stride):
    """gates = SiLU(gates), times the activations if the layer is gated, for the thread's part of the outputs."""
    first, last = _outputs(thread, plan, plan[at.D_FF])
    for row in range(plan[at.NUM_ROWS]):
        offset = 4 * (row * stride + first)
        gate, activation = floats_at(gates + offset), floats_at(activations + offset)
        silu(gate, last - first)
        if plan[at.IS_GATED]:
            for f in range(last - first):
                gate[f] *= activation[f]


@compiled
def _add(thread, plan, residual, stride, update, update_stride, target):
    """target = residual + update, for the thread's part of the outputs; the arguments but strides are addresses."""
    first, last = _outputs(thread, plan, plan[at.D_MODEL])
    for row in range(plan[at.NUM_ROWS]):
        old, new = floats_at(residual + 4 * row * stride), floats_at(update + 4 * row * update_stride)
        x = floats_at(target + 4 * row * stride)
        for d in range(first, last):
            x[d] = old[d] + new[d]


@inlined
def _outputs(thread, plan, d_out):
    """The range [first, last) of the outputs that `_multiply` has computed in this thread."""
    num_panels = _round_up(d_out, PANEL) // PANEL
    first = first_of(thread, plan[at.NUM_THREADS], num_panels)
    last = first_of(thread + 1, plan[at.NUM_THREADS], num_panels)
    return first * PANEL, min(last * PANEL, d_out)
