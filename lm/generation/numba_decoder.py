"""The decoder of `lm.generation.decoder` with a compiled step, for a model on the CPU in float32 or bfloat16.

Prompts are read by PyTorch, whose products of many rows are fast, into the same cache.
"""

import sys
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from torch import Tensor, nn

from lm.device import why_not_compile
from lm.generation.decoder import Decoder, extend
from lm.model.layers import LayerNorm, RMSNorm, SwiGLU
from lm.model.transformer import TransformerLM

_END = -(1 << 62)  # orders that no further one makes positive


def fastest_decoder(model: TransformerLM, num_rows: int) -> "Decoder | NumbaDecoder":
    """The compiled step on the CPU, which takes seconds the first time on a machine; on CUDA PyTorch's as a graph."""
    if can_compile(model):
        return NumbaDecoder(model, num_rows)
    device = model.token_embeddings.weight.device
    return Decoder(model, num_rows, compiled=device.type == "cuda" and why_not_compile(device) is None)


def can_compile(model: TransformerLM) -> bool:
    weight = model.token_embeddings.weight
    is_supported = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return is_supported and sys.platform != "win32" and find_spec("numba") is not None


class NumbaDecoder:
    """As `Decoder`; it takes as many threads as PyTorch does, which look out for steps as long as it lives.

    The model must not change meanwhile, as some of its weights are copied. One thread at a time may call it.
    """

    def __init__(self, model: TransformerLM, num_rows: int) -> None:
        from lm.generation.numba_step import follow, lead

        self.model = model
        self._plain = Decoder(model, num_rows)
        self.prefill = self._plain.prefill
        if not any(Path(lead.stats.cache_path).glob("numba_step.lead-*")):
            print("compiling the decoding step, once for each precision: some seconds", file=sys.stderr)
        num_threads = torch.get_num_threads()
        self._orders, arrived = np.array([_END, 1]), np.zeros(1, np.int64)
        self._token_ids, self._positions = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
        self._logits = np.zeros((num_rows, model.vocab_size), np.float32)
        cache = _numbers(self._plain.keys), _numbers(self._plain.values)
        state = self._token_ids, self._positions, *cache, self._logits
        shared = num_threads, self._orders, arrived, _pack(model), _scratch(model, num_rows, num_threads), *state
        # Both are compiled now, and no text has to wait for it: one ends at once, one does a step alone.
        follow(0, *shared)
        lead(1, *shared[1:])
        self._orders[0] = arrived[0] = 0
        self._lead, self._shared = lead, shared
        helpers = [Thread(target=follow, args=(number, *shared), daemon=True) for number in range(1, num_threads)]
        for helper in helpers:
            helper.start()
        weakref.finalize(self, _end, helpers, self._orders)

    @property
    def lengths(self) -> list[int]:
        return self._plain.lengths

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """As `Decoder.decode`; the logits are float32."""
        extend(self.lengths, token_ids, self.model.config.context_length)
        num_rows = len(token_ids)
        self._token_ids[:num_rows] = [token_id or 0 for token_id in token_ids]
        self._positions[:num_rows] = [max(0, length - 1) for length in self.lengths[:num_rows]]
        self._orders[1] = num_rows
        self._lead(*self._shared)
        return torch.from_numpy(self._logits[:num_rows].copy())


def _end(helpers: list[Thread], orders: np.ndarray) -> None:
    """Before the decoder goes, or the interpreter, which a thread within machine code would bring down."""
    orders[0] = _END
    for helper in helpers:
        helper.join()


def _pack(model: TransformerLM) -> tuple:
    """What `lm.generation.numba_step.lead` calls `model`."""
    config = model.config
    dtype = model.token_embeddings.weight.dtype
    blocks = list(model.layers)
    # The norm that stands before each sub-layer and the head: its own, or the one behind the sub-layer before.
    passed = [norm for block in blocks for norm in (block.ln1, block.ln2)]
    passed = [*passed, model.ln_final] if config.norm_position == "pre" else [nn.Identity(), *passed]
    attns = [block.attn for block in blocks]
    ffns = [block.ffn for block in blocks]
    is_gated = isinstance(ffns[0], SwiGLU)
    nothing = torch.empty(0, 0)
    rope, learned = attns[0].rope, torch.empty(0, 0, dtype=dtype)
    if config.position == "learned":
        learned = model.position_embeddings.weight
    qk_norms = [torch.stack((a.q_norm.weight, a.k_norm.weight)) if config.qk_norm else torch.empty(2, 0) for a in attns]
    return (
        _numbers(model.token_embeddings.weight),
        _numbers(learned),
        _numbers(rope.cos.float() if rope else nothing),
        _numbers(rope.sin.float() if rope else nothing),
        np.array([{RMSNorm: 1, LayerNorm: 2}.get(type(norm), 0) for norm in passed]),
        _numbers(torch.stack([_weight_and_bias(norm, config.d_model) for norm in passed])),
        config.norm_position == "post",
        _numbers(torch.stack(qk_norms).float()),
        _numbers(torch.stack([torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)) for a in attns])),
        _numbers(torch.stack([a.output_proj.weight for a in attns])),
        _numbers(torch.stack([torch.cat((f.w1.weight, f.w3.weight)) if is_gated else f.w1.weight for f in ffns])),
        _numbers(torch.stack([f.w2.weight for f in ffns])),
        _numbers(model.lm_head.weight),
        is_gated,
    )


def _scratch(model: TransformerLM, num_rows: int, num_threads: int) -> tuple:
    config, ffn = model.config, model.layers[0].ffn
    d_heads = config.num_heads * config.d_head
    widest = max(config.d_model, d_heads + 2 * config.num_kv_heads * config.d_head)
    inside = ffn.w1.weight.shape[0] * (2 if isinstance(ffn, SwiGLU) else 1)
    shapes = (
        (num_rows, config.d_model),
        (num_threads, num_rows, config.d_model),
        (num_rows, widest),
        (num_rows, d_heads),
        (num_rows, inside),
        (num_threads, config.context_length),
    )
    return tuple(np.empty(shape, np.float32) for shape in shapes)


def _weight_and_bias(norm: nn.Module, d_model: int) -> Tensor:
    """(2, D); ones and zeros where there are none."""
    weight = getattr(norm, "weight", torch.ones(d_model))
    return torch.stack((weight, getattr(norm, "bias", torch.zeros(d_model)))).float()


def _numbers(tensor: Tensor) -> np.ndarray:
    """A view; of bfloat16 the bits."""
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
