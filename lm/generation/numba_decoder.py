"""A decoder whose step is compiled by numba, for models on the CPU in float32, bfloat16 or int8.

PyTorch reads the prompts, since its matrix multiplications are fast for many rows, and writes into the same cache.
"""

import sys
import weakref
from collections.abc import Sequence
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from lm.device import why_not_compile
from lm.generation.decoder import Decoder, extended
from lm.generation.kernels import library
from lm.generation.kernels.plan import EPS, NUM_ROWS
from lm.generation.plan import IS_GATED, NORM_KINDS, Plan
from lm.generation.quantized import QuantizedEmbedding, QuantizedLinear
from lm.model.attention import MultiHeadSelfAttention
from lm.model.canon import NoCanon
from lm.model.config import ModelConfig
from lm.model.linear import Embedding, Linear
from lm.model.norms import LayerNorm, RMSNorm
from lm.model.positions import RotaryEmbedding
from lm.model.transformer import TransformerBlock, TransformerLM
from lm.tokenizer.text.fast.build import can_load

_END = -(1 << 62)  # a command count that no further command makes positive

# What the step computes, by the exact types of the layers.
_LAYERS = {
    *NORM_KINDS,
    *IS_GATED,
    TransformerLM,
    TransformerBlock,
    MultiHeadSelfAttention,
    Linear,
    QuantizedLinear,
    Embedding,
    QuantizedEmbedding,
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
    if sys.platform == "win32" or not can_load():
        return False
    if set(vars(model.config)) != _CONFIG_FIELDS:
        return False
    if not all(getattr(model.config, name) in values for name, values in _SWITCHES.items()):
        return False
    if any(type(module) not in _LAYERS for module in model.modules()):
        return False
    return all(module.eps == EPS for module in model.modules() if isinstance(module, RMSNorm | LayerNorm))


class NumbaDecoder:
    """A `Decoder` with a compiled step, which uses as many threads as PyTorch.

    The threads wait for steps as long as the decoder exists. The model must not change during that time, because some
    of its weights are copied. Only one thread at a time may call the decoder.
    """

    def __init__(self, model: TransformerLM, num_rows: int, context_length: int | None = None) -> None:
        self.model = model
        self._torch_decoder = Decoder(model, num_rows, context_length)
        self.prefill = self._torch_decoder.prefill
        num_threads = torch.get_num_threads()
        self._plan = Plan(model, self._torch_decoder.cache, num_threads)
        self._run_steps = library.load().run_steps
        workers = [
            Thread(target=self._run_steps, args=(number, self._plan.numbers), daemon=True)
            for number in range(1, num_threads)
        ]
        for worker in workers:
            worker.start()
        weakref.finalize(self, _end, workers, self._plan)

    @property
    def lengths(self) -> list[int]:
        return self._torch_decoder.lengths

    @property
    def context_length(self) -> int:
        return self._torch_decoder.context_length

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """As `Decoder.decode`; the logits are float32."""
        self.lengths[:] = extended(self.lengths, token_ids, self.context_length)
        num_rows, plan = len(token_ids), self._plan
        plan.token_ids[:num_rows] = torch.tensor([token_id or 0 for token_id in token_ids])
        plan.positions[:num_rows] = torch.tensor(self.lengths[:num_rows]).sub_(1).clamp_(min=0)
        plan.numbers[NUM_ROWS] = num_rows
        self._run_steps(0, plan.numbers)
        return plan.logits[:num_rows, : self.model.vocab_size].clone()


def _end(workers: list[Thread], plan: "Plan") -> None:
    """Stop the threads; the interpreter would crash on exit if one of them were still running machine code."""
    plan.commands[0] = _END
    for worker in workers:
        worker.join()
