import dataclasses

import pytest
import torch

from lm.errors import UserError
from lm.generation.decoder import Decoder
from lm.generation.numba_decoder import NumbaDecoder, fastest_decoder, supports
from lm.generation.panels import unpack_int8
from lm.generation.quantized import QuantizedEmbedding, QuantizedLinear, to_int8
from lm.model.config import ModelConfig
from lm.model.linear import Linear
from lm.model.transformer import TransformerLM

VOCAB_SIZE = 50

SWITCHES = {
    "default": {},
    "narrow": {"d_ff": 50},  # not a multiple of a block
    "tied": {"tie_embeddings": True},
    "gpt2-like": {"position": "learned", "norm": "layernorm", "ffn": "silu", "tie_embeddings": True},
    "grouped": {"num_kv_heads": 1, "qk_norm": True, "norm_position": "post"},
}


def build(config: ModelConfig) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(config, VOCAB_SIZE).eval()


def rounded(config: ModelConfig) -> TransformerLM:
    """The model of `build` in float32, with the weights that int8 has; nothing else is rounded."""
    model, quantized = build(config), to_int8(build(config))
    with torch.no_grad():
        for name, layer in quantized.named_modules():
            if isinstance(layer, QuantizedLinear | QuantizedEmbedding):
                weight = model.get_submodule(name).weight
                weight.copy_(unpack_int8(layer.panels, torch.arange(len(weight)), weight.shape[1]))
    return model


@pytest.mark.parametrize("name", SWITCHES)
@torch.no_grad()
def test_the_decoder_and_the_model_compute_the_same(name, small):
    config = dataclasses.replace(small, **SWITCHES[name])
    text = [1, 2, 3, 4, 5, 6, 7]
    expected = rounded(config)(torch.tensor(text))
    model = to_int8(build(config))
    assert supports(model)
    decoder = NumbaDecoder(model, num_rows=1)
    logits = [decoder.prefill([0], [text[:4]]), *(decoder.decode([token]) for token in text[4:])]
    # Beside the weights, the inputs of products are rounded, to a 254th of the largest of 32 at most. Whether a number
    # is rounded up or down may depend on the order of the sums before it.
    scale = expected.std()
    assert (torch.cat(logits) - expected[3:]).abs().max() < 0.1 * scale
    assert (model(torch.tensor(text)) - expected).abs().max() < 0.1 * scale


@torch.no_grad()
def test_layers_that_the_step_does_not_know_are_quantized_too(small):
    config = dataclasses.replace(small, ffn="relu_squared", canon=True)
    model = to_int8(build(config))
    decoder = fastest_decoder(model, num_rows=1)
    assert isinstance(decoder, Decoder)
    expected = rounded(config)(torch.tensor([1, 2, 3]))[-1]
    assert (decoder.prefill([0], [[1, 2, 3]])[0] - expected).abs().max() < 0.1 * expected.std()


def test_every_matrix_is_quantized_and_a_tied_one_is_shared(small):
    model = to_int8(build(dataclasses.replace(small, tie_embeddings=True)))
    assert not any(isinstance(module, Linear) for module in model.modules())
    assert all(parameter.ndim == 1 for parameter in model.parameters())  # only norms are left
    assert model.lm_head.panels is model.token_embeddings.panels


def test_a_bfloat16_model_becomes_float32_elsewhere(small):
    model = to_int8(build(small).bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(torch.tensor([1])).dtype == torch.float32


def test_another_device_is_refused_in_one_line(small):
    with pytest.raises(
        UserError, match="^--dtype: int8 needs the CPU, got meta; use bfloat16, or set runtime.device to"
    ):
        to_int8(build(small).to("meta"))
