"""A decoder whose step is compiled by numba, for models on the CPU in float32 or bfloat16.

PyTorch reads the prompts, since its matrix multiplications are fast for many rows, and writes into the same cache.
"""

import sys
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lm.device import why_not_compile
from lm.generation.decoder import Decoder, extended
from lm.model.attention import MultiHeadSelfAttention
from lm.model.canon import NoCanon
from lm.model.config import ModelConfig
from lm.model.feed_forward import SiLU, SwiGLU
from lm.model.linear import Embedding, Linear
from lm.model.norms import LayerNorm, NoNorm, RMSNorm
from lm.model.positions import RotaryEmbedding
from lm.model.transformer import TransformerBlock, TransformerLM

_END = -(1 << 62)  # a command count that no further command makes positive

# What the step computes, by the exact types of the layers; the numbers are those of numba_step.py.
_NORM_KINDS: dict[type[nn.Module], int] = {NoNorm: 0, RMSNorm: 1, LayerNorm: 2}
_IS_GATED: dict[type[nn.Module], bool] = {SwiGLU: True, SiLU: False}
_OTHER_LAYERS = {
    TransformerLM,
    TransformerBlock,
    MultiHeadSelfAttention,
    Linear,
    Embedding,
    RotaryEmbedding,
    NoCanon,
    nn.ModuleList,
    nn.Identity,
}
# The switches that do not select a type of layer, with the values that the step computes.
_SWITCHES: dict[str, set[Any]] = {
    "norm_position": {"pre", "post"},
    "position": {"rope", "learned", "none"},
    "qk_norm": {False, True},
    "canon": {False},
    "tie_embeddings": {False, True},
}
_SIZES = {"d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "context_length", "rope_theta"}
_CONFIG_FIELDS = {*_SWITCHES, *_SIZES, "norm", "ffn"}
_EPS = 1e-5  # as in numba_step.py


def fastest_decoder(model: TransformerLM, num_rows: int, context_length: int | None = None) -> "Decoder | NumbaDecoder":
    """The fastest decoder that supports the model; `Decoder` explains the arguments.

    On the CPU, this is the one with the step compiled by numba, which takes seconds the first time on a machine; on
    CUDA, the one in PyTorch, whose step runs as a CUDA graph. A model with a layer that the compiled step does not know
    decodes with PyTorch.
    """
    if supports(model):
        return NumbaDecoder(model, num_rows, context_length)
    device = model.token_embeddings.weight.device
    compiled = device.type == "cuda" and why_not_compile(device) is None
    return Decoder(model, num_rows, context_length, compiled)


def supports(model: TransformerLM) -> bool:
    """Whether the compiled step computes exactly this model: its device, its dtype and the type of every layer.

    A layer of any other type, even a subclass, is not supported, and neither is a field or a value of the configuration
    that was added after this list.
    """
    weight = model.token_embeddings.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    if sys.platform == "win32" or find_spec("numba") is None:
        return False
    if set(vars(model.config)) != _CONFIG_FIELDS:
        return False
    if not all(getattr(model.config, name) in values for name, values in _SWITCHES.items()):
        return False
    known = {*_NORM_KINDS, *_IS_GATED, *_OTHER_LAYERS}
    if any(type(module) not in known for module in model.modules()):
        return False
    return all(module.eps == _EPS for module in model.modules() if isinstance(module, RMSNorm | LayerNorm))


class NumbaDecoder:
    """A `Decoder` with a compiled step, which uses as many threads as PyTorch.

    The threads wait for steps as long as the decoder exists. The model must not change during that time, because some
    of its weights are copied. Only one thread at a time may call the decoder.
    """

    def __init__(self, model: TransformerLM, num_rows: int, context_length: int | None = None) -> None:
        from lm.generation.numba_step import run_step, worker_loop

        self.model = model
        self._torch_decoder = Decoder(model, num_rows, context_length)
        self.prefill = self._torch_decoder.prefill
        if not any(Path(run_step.stats.cache_path or "").glob("numba_step.run_step-*")):
            print("compiling the decoding step, once per precision: this takes a few seconds", file=sys.stderr)
        num_threads = torch.get_num_threads()
        self._commands, arrived = np.array([_END, 1]), np.zeros(1, np.int64)
        self._token_ids, self._positions = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
        self._logits = np.zeros((num_rows, model.vocab_size), np.float32)
        cache = self._torch_decoder.cache
        state = self._token_ids, self._positions, _to_numpy(cache.keys), _to_numpy(cache.values), self._logits
        scratch = _scratch(model, num_rows, self.context_length, num_threads)
        shared = num_threads, self._commands, arrived, _pack(model), scratch, *state
        # Compile both now, so that no text has to wait for it: the first call ends at once, the second runs one step
        # with one thread.
        worker_loop(0, *shared)
        run_step(1, *shared[1:])
        self._commands[0] = arrived[0] = 0
        self._run_step, self._shared = run_step, shared
        workers = [Thread(target=worker_loop, args=(number, *shared), daemon=True) for number in range(1, num_threads)]
        for worker in workers:
            worker.start()
        weakref.finalize(self, _end, workers, self._commands)

    @property
    def lengths(self) -> list[int]:
        return self._torch_decoder.lengths

    @property
    def context_length(self) -> int:
        return self._torch_decoder.context_length

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """As `Decoder.decode`; the logits are float32."""
        self.lengths[:] = extended(self.lengths, token_ids, self.context_length)
        num_rows = len(token_ids)
        self._token_ids[:num_rows] = [token_id or 0 for token_id in token_ids]
        self._positions[:num_rows] = [max(0, length - 1) for length in self.lengths[:num_rows]]
        self._commands[1] = num_rows
        self._run_step(*self._shared)
        return torch.from_numpy(self._logits[:num_rows].copy())


def _end(workers: list[Thread], commands: np.ndarray) -> None:
    """Stop the threads; the interpreter would crash on exit if one of them were still running machine code."""
    commands[0] = _END
    for worker in workers:
        worker.join()


def _pack(model: TransformerLM) -> tuple[Any, ...]:
    """The arrays and switches that `lm.generation.numba_step.run_step` calls `model`."""
    config = model.config
    dtype = model.token_embeddings.weight.dtype
    blocks = _blocks(model)
    # The norm before each sublayer and before the head: its own in pre-norm, the preceding sublayer's in post-norm.
    norms: list[nn.Module] = [norm for block in blocks for norm in (block.ln1, block.ln2)]
    norms = [*norms, model.ln_final] if config.norm_position == "pre" else [NoNorm(config.d_model), *norms]
    attns = [block.attn for block in blocks]
    ffns = [block.ffn for block in blocks]
    is_gated = _IS_GATED[type(ffns[0])]
    empty = torch.empty(0, 0)
    rope, learned = attns[0].rope, torch.empty(0, 0, dtype=dtype)
    if config.position == "learned":
        learned = model.position_embeddings.weight
    qk_norms = [torch.empty(2, 0) for _ in attns]
    if config.qk_norm:
        qk_norms = [torch.stack(tuple(norm.weight for norm in (a.q_norm, a.k_norm))) for a in attns]
    return (
        _to_numpy(model.token_embeddings.weight),
        _to_numpy(learned),
        _to_numpy(rope.cos.float() if rope else empty),
        _to_numpy(rope.sin.float() if rope else empty),
        np.array([_NORM_KINDS[type(norm)] for norm in norms]),
        _to_numpy(torch.stack([_weight_and_bias(norm, config) for norm in norms])),
        config.norm_position == "post",
        _to_numpy(torch.stack(qk_norms).float()),
        _to_numpy(torch.stack([torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)) for a in attns])),
        _to_numpy(torch.stack([a.output_proj.weight for a in attns])),
        _to_numpy(torch.stack([torch.cat((f.w1.weight, f.w3.weight)) if is_gated else f.w1.weight for f in ffns])),
        _to_numpy(torch.stack([f.w2.weight for f in ffns])),
        _to_numpy(model.lm_head.weight),
        is_gated,
    )


def _scratch(model: TransformerLM, num_rows: int, context_length: int, num_threads: int) -> tuple[np.ndarray, ...]:
    """The arrays for intermediate results that `lm.generation.numba_step.run_step` calls `scratch`."""
    config, ffn = model.config, _blocks(model)[0].ffn
    d_heads = config.num_heads * config.d_head
    widest = max(config.d_model, d_heads + 2 * config.num_kv_heads * config.d_head)
    hidden = ffn.w1.weight.shape[0] * (2 if _IS_GATED[type(ffn)] else 1)
    shapes = (
        (num_rows, config.d_model),
        (num_threads, num_rows, config.d_model),
        (num_rows, widest),
        (num_rows, d_heads),
        (num_rows, hidden),
        (num_threads, context_length),
    )
    return tuple(np.empty(shape, np.float32) for shape in shapes)


def _blocks(model: TransformerLM) -> list[Any]:
    """The blocks, whose layers are among those that `supports` accepts."""
    return list(model.layers)


def _weight_and_bias(norm: nn.Module, config: ModelConfig) -> Tensor:
    """(2, D); ones and zeros where the norm has none."""
    weight = getattr(norm, "weight", torch.ones(config.d_model))
    return torch.stack((weight, getattr(norm, "bias", torch.zeros(config.d_model)))).float()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """A view of the tensor; of bfloat16, a view of its bits as uint16."""
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
