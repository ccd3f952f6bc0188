"""A decoder whose step is compiled by numba, for models on the CPU in float32, bfloat16 or int8.

It reads prompts too, many tokens at once.
"""

import sys
import weakref
from collections.abc import Sequence
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lm.device import why_not_compile
from lm.generation.decoder import Decoder, check_memory, extended
from lm.generation.kernels import library
from lm.generation.kernels.plan import EPS, IS_PROMPT, NUM_OUTPUTS, NUM_ROWS
from lm.generation.plan import IS_GATED, NORM_KINDS, Plan
from lm.generation.quantized import QuantizedEmbedding, QuantizedLinear
from lm.model.attention import MultiHeadSelfAttention
from lm.model.canon import NoCanon
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
        self.context_length = min(context_length or model.config.context_length, model.config.context_length)
        self.lengths = [0] * num_rows
        check_memory(model, num_rows, self.context_length)
        num_threads = torch.get_num_threads()
        self._plan = Plan(model, num_rows, self.context_length, num_threads)
        self._run_steps = library.load().run_steps
        workers = [
            Thread(target=self._run_steps, args=(number, self._plan.address), daemon=True)
            for number in range(1, num_threads)
        ]
        for worker in workers:
            worker.start()
        weakref.finalize(self, _end, workers, self._plan)

    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Decoder.prefill`; the logits are float32."""
        tokens = [token for row, prompt in zip(rows, prompts) for token in _tokens(row, prompt)]
        at_once = self._plan.max_rows
        parts = [tokens[start : start + at_once] for start in range(0, len(tokens), at_once)]
        logits = [self._step(part, is_prompt=True) for part in parts]
        for row, prompt in zip(rows, prompts):
            self.lengths[row] = len(prompt)
        return torch.from_numpy(np.concatenate(logits))

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """As `Decoder.decode`; the logits are float32."""
        self.lengths[:] = extended(self.lengths, token_ids, self.context_length)
        tokens = [(token_id or 0, max(0, self.lengths[row] - 1), row, True) for row, token_id in enumerate(token_ids)]
        return torch.from_numpy(self._step(tokens, is_prompt=False))

    def _step(self, tokens: Sequence[tuple[int, int, int, bool]], is_prompt: bool) -> np.ndarray:
        """Read tokens: their ids, positions, rows, and whether to return the logits of what follows, (outputs, V).

        NumPy copies in one thread. PyTorch would use several, which spin for a while after that, on the processors that
        the threads of the next step need.
        """
        plan, num_rows = self._plan, len(tokens)
        plan.token_ids[:num_rows], plan.positions[:num_rows], plan.texts[:num_rows] = np.array(
            [token[:3] for token in tokens]
        ).T
        outputs = [row for row, (*_, is_output) in enumerate(tokens) if is_output]
        plan.outputs[: len(outputs)] = outputs
        plan.numbers[[NUM_ROWS, NUM_OUTPUTS, IS_PROMPT]] = num_rows, len(outputs), is_prompt
        self._run_steps(0, plan.address)
        return plan.logits[: len(outputs), : self.model.vocab_size].copy()


def _tokens(row: int, prompt: Sequence[int]) -> list[tuple[int, int, int, bool]]:
    """The tokens of a prompt as arguments of `_step`, with logits after the last one."""
    last = len(prompt) - 1
    return [(token_id, position, row, position == last) for position, token_id in enumerate(prompt)]


def _end(workers: list[Thread], plan: "Plan") -> None:
    """Stop the threads; the interpreter would crash on exit if one of them were still running machine code."""
    plan.commands[0] = _END
    for worker in workers:
        worker.join()
