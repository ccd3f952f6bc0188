"""What the compiled step gets of a model: its sizes, and the addresses of its weights, of its cache and of its results.

Shapes are those of lm/generation/kernels/plan.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lm.generation.kernels import library
from lm.generation.kernels import plan as at
from lm.generation.kernels.layout import BFLOAT16, BLOCK, FLOAT32, INT8, PANEL, QUANTIZED_BLOCK, round_up
from lm.generation.panels import pack
from lm.generation.quantized import QuantizedEmbedding, QuantizedLinear
from lm.model.config import ModelConfig
from lm.model.feed_forward import SiLU, SwiGLU
from lm.model.linear import Linear
from lm.model.norms import LayerNorm, NoNorm, RMSNorm
from lm.model.transformer import TransformerLM

NORM_KINDS: dict[type[nn.Module], int] = {NoNorm: at.NO_NORM, RMSNorm: at.RMS_NORM, LayerNorm: at.LAYER_NORM}
IS_GATED: dict[type[nn.Module], bool] = {SwiGLU: True, SiLU: False}

_PROMPT_ROWS = 128  # tokens of prompts that are read at once, so that each weight is read once for all of them
_TOGETHER = 16  # at most as many rows attend together
_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
_PRODUCTS = {FLOAT32: "multiply_float32", BFLOAT16: "multiply_bfloat16", INT8: "multiply_int8"}


class Plan:
    """A model whose layers are among those that `lm.generation.numba_decoder.supports` accepts, ready for steps.

    Attributes:
        numbers: the plan that `run_steps` reads at `address`.
        max_rows: the number of tokens that a step can read at once.
        commands, token_ids, positions, texts, outputs, logits: the arrays that a step reads and writes.
    """

    def __init__(self, model: TransformerLM, num_texts: int, context_length: int, num_threads: int) -> None:
        config = model.config
        blocks: list[Any] = list(model.layers)
        dtype = model.token_embeddings.weight.dtype
        num_columns = round_up(context_length, BLOCK)
        self.max_rows = num_rows = max(num_texts, _PROMPT_ROWS)
        is_gated = IS_GATED[type(blocks[0].ffn)]
        d_ff = blocks[0].ffn.hidden_width(config.d_ff)
        d_heads, d_kv_heads = config.num_heads * config.d_head, config.num_kv_heads * config.d_head
        is_int8 = isinstance(model.token_embeddings, QuantizedEmbedding)

        self._arrays: list[Tensor | np.ndarray] = []  # which must live as long as their addresses are in use
        self.numbers = np.zeros(at.SIZE, np.int64)
        self.address = self.numbers.ctypes.data
        self.commands = np.zeros(8, np.int64)
        self.token_ids, self.positions, self.texts, self.outputs = np.zeros((4, num_rows), np.int64)
        self.logits = np.zeros((num_rows, round_up(model.vocab_size, PANEL)), np.float32)

        self._set(at.NUM_THREADS, num_threads)
        self._set(at.KIND, INT8 if is_int8 else _KINDS[dtype])
        self._set(at.CACHE_KIND, _KINDS[dtype])
        engine = library.load().engine
        self._set(at.PRODUCT, engine.get_function_address(_PRODUCTS[INT8 if is_int8 else _KINDS[dtype]]))
        self._set(at.CACHE_PRODUCT, engine.get_function_address(_PRODUCTS[_KINDS[dtype]]))
        self._set(at.NUM_LAYERS, config.num_layers)
        self._set(at.D_MODEL, config.d_model)
        self._set(at.NUM_HEADS, config.num_heads)
        self._set(at.NUM_KV_HEADS, config.num_kv_heads)
        self._set(at.D_HEAD, config.d_head)
        self._set(at.D_FF, d_ff)
        self._set(at.VOCAB_SIZE, model.vocab_size)
        self._set(at.CACHE_ROWS, num_texts)
        self._set(at.CACHE_COLUMNS, num_columns)
        self._set(at.IS_GATED, is_gated)
        self._set(at.IS_POST_NORM, config.norm_position == "post")

        embeddings: Any = model.token_embeddings
        self._set(at.TOKEN_EMBEDDINGS, embeddings.panels if is_int8 else embeddings.weight)
        if config.position == "learned":
            self._set(at.POSITION_EMBEDDINGS, model.position_embeddings.weight)
        if rope := blocks[0].attn.rope:
            self._set(at.COS, rope.cos.float())
            self._set(at.SIN, rope.sin.float())
        # The norm before each sublayer and before the head: its own in pre-norm, the preceding sublayer's in post-norm.
        norms: list[nn.Module] = [norm for block in blocks for norm in (block.ln1, block.ln2)]
        norms = [*norms, model.ln_final] if config.norm_position == "pre" else [NoNorm(config.d_model), *norms]
        self._set(at.NORM_KINDS, torch.tensor([NORM_KINDS[type(norm)] for norm in norms]))
        self._set(at.NORMS, torch.stack([_weight_and_bias(norm, config) for norm in norms]))
        if config.qk_norm:
            qk_norms = [norm.weight for block in blocks for norm in (block.attn.q_norm, block.attn.k_norm)]
            self._set(at.QK_NORMS, torch.stack(qk_norms).float())
        self._set(at.MATRICES, torch.tensor([self._matrices(block) for block in blocks]))
        self._set(at.LM_HEAD, self._panels(model.lm_head))

        self._set(at.COMMANDS, self.commands)
        self._set(at.ARRIVED, np.zeros_like(self.commands))
        self._set(at.TOKEN_IDS, self.token_ids)
        self._set(at.POSITIONS, self.positions)
        self._set(at.TEXTS, self.texts)
        self._set(at.OUTPUTS, self.outputs)
        cache = config.num_layers, num_texts, config.num_kv_heads, num_columns * round_up(config.d_head, BLOCK)
        self._set(at.KEYS, torch.zeros(cache, dtype=dtype))
        self._set(at.VALUES, torch.zeros(cache, dtype=dtype))
        self._set(at.LOGITS, self.logits)
        # Zeros: what lies between the end of a row and the end of its last block must not be NaN.
        d_model, heads, ff = (round_up(width, BLOCK) for width in (config.d_model, d_heads, d_ff))
        projected = round_up(d_heads, PANEL) + 2 * round_up(d_kv_heads, PANEL)
        self._set(at.X, torch.zeros(num_rows, d_model))
        self._set(at.NORMED, torch.zeros(num_threads, num_rows, d_model))
        self._set(at.PROJECTED, torch.zeros(num_rows, max(projected, round_up(config.d_model, PANEL))))
        self._set(at.HEADS, torch.zeros(num_rows, heads))
        self._set(at.GATES, torch.zeros(num_rows, ff))
        self._set(at.ACTIVATIONS, torch.zeros(num_rows, ff))
        self._set(at.SCORES, torch.zeros(num_threads, _TOGETHER, num_columns + round_up(config.d_head, PANEL)))
        if is_int8:
            quantized = max(d_model, heads, ff) // BLOCK * QUANTIZED_BLOCK
            self._set(at.QUANTIZED, torch.zeros(num_threads, num_rows, quantized, dtype=torch.uint8))

    def _set(self, place: int, value: int | Tensor | np.ndarray) -> None:
        """Write a number, or the address of an array."""
        self.numbers[place] = self._address(value) if isinstance(value, Tensor | np.ndarray) else value

    def _address(self, array: Tensor | np.ndarray) -> int:
        self._arrays.append(array)
        return array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data

    def _matrices(self, block: Any) -> Sequence[int]:
        attn, ffn = block.attn, block.ffn
        w3 = self._address(self._panels(ffn.w3)) if IS_GATED[type(ffn)] else 0
        projections = (self._panels(layer) for layer in (attn.q_proj, attn.k_proj, attn.v_proj, attn.output_proj))
        w1, w2 = self._address(self._panels(ffn.w1)), self._address(self._panels(ffn.w2))
        return [*map(self._address, projections), w1, w3, w2]

    def _panels(self, layer: Linear | QuantizedLinear) -> Tensor:
        return layer.panels if isinstance(layer, QuantizedLinear) else pack(layer.weight)


def _weight_and_bias(norm: nn.Module, config: ModelConfig) -> Tensor:
    """(2, D); ones and zeros where the norm has none."""
    weight = getattr(norm, "weight", torch.ones(config.d_model))
    return torch.stack((weight, getattr(norm, "bias", torch.zeros(config.d_model)))).detach().float()
