"""A model whose matrices have eight bits per weight, for generating text on a CPU with less memory and more speed.

    model = to_int8(model)

The weights are those of GGUF's q8_0. Inputs of a product are rounded to eight bits as well, in blocks of 32 with their
own scale, so that a product multiplies integers; everything between products is float32.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor, nn

from lm.errors import UserError
from lm.generation.kernels import library
from lm.generation.kernels.layout import BLOCK, PANEL, QUANTIZED_BLOCK, round_up
from lm.generation.panels import pack_int8, unpack_int8
from lm.model.linear import Linear
from lm.model.transformer import TransformerLM


class QuantizedLinear(nn.Module):
    """y = x Wᵀ with W in int8, (..., d_in) -> (..., d_out), for inference.

    `panels` holds the weights; `weight` is empty and only tells the dtype and the device of the layer.
    """

    panels: Tensor
    weight: Tensor

    def __init__(self, d_in: int, d_out: int, panels: Tensor) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.register_buffer("panels", panels)
        self.register_buffer("weight", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        num_blocks = round_up(self.d_in, BLOCK) // BLOCK
        rows = nn.functional.pad(x.reshape(-1, self.d_in), (0, num_blocks * BLOCK - self.d_in)).contiguous()
        out = torch.empty(len(rows), len(self.panels) * PANEL)
        num_threads = min(torch.get_num_threads(), len(self.panels))
        stride = num_blocks * QUANTIZED_BLOCK
        quantized = torch.empty(num_threads, len(rows), stride, dtype=torch.uint8)
        kernels = library.load()

        def part(thread: int) -> None:
            first, last = (len(self.panels) * number // num_threads for number in (thread, thread + 1))
            inputs = quantized[thread].data_ptr()
            kernels.quantize_rows(rows.data_ptr(), 4 * rows.shape[1], num_blocks, len(rows), inputs, stride)
            panels = self.panels[first:last].data_ptr(), self.panels.shape[1], last - first, num_blocks
            result = out[:, first * PANEL :].data_ptr(), 4 * out.shape[1]
            kernels.multiply_int8(*panels, inputs, stride, len(rows), *result)

        others = [_threads(num_threads).submit(part, thread) for thread in range(1, num_threads)]
        part(0)
        for other in others:
            other.result()
        return out[:, : self.d_out].unflatten(0, x.shape[:-1])


@cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, num_threads - 1))


class QuantizedEmbedding(nn.Module):
    """A table of vectors in int8, one per id, for inference; `weight` is as in `QuantizedLinear`."""

    panels: Tensor
    weight: Tensor

    def __init__(self, d_model: int, panels: Tensor) -> None:
        super().__init__()
        self.d_model = d_model
        self.register_buffer("panels", panels)
        self.register_buffer("weight", torch.empty(0))

    def forward(self, token_ids: Tensor) -> Tensor:
        return unpack_int8(self.panels, token_ids, self.d_model)  # (...) -> (..., D)


@torch.no_grad()
def to_int8(model: TransformerLM) -> TransformerLM:
    """Replace, in place, every linear layer and the token embeddings by quantized ones; return the model.

    Learned position embeddings, norms and Canon layers stay in float32.

    Raises:
        UserError: the model is not on the CPU, or q8_0 cannot represent a weight.
    """
    device = model.token_embeddings.weight.device
    if device.type != "cpu":
        raise UserError(f"--dtype: int8 needs the CPU, got {device.type}; use bfloat16, or set runtime.device to cpu")
    model.float()
    table = model.token_embeddings.weight
    is_tied = model.lm_head.weight is table
    embeddings = QuantizedEmbedding(table.shape[1], pack_int8(table))
    parents = [module for module in model.modules() if any(isinstance(child, Linear) for child in module.children())]
    for parent in parents:
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                d_out, d_in = child.weight.shape
                shared = is_tied and child is model.lm_head
                panels = embeddings.panels if shared else pack_int8(child.weight)
                parent.register_module(name, QuantizedLinear(d_in, d_out, panels))
    model.register_module("token_embeddings", embeddings)
    return model
