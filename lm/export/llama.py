"""The Llama layout (Touvron et al. 2023), which other programs read: its configuration and its names of the weights.

A model of ours has it with `norm: rmsnorm`, `norm_position: pre`, `position: rope` and `ffn: swiglu`; with `qk_norm` it
is Qwen3's (Yang et al. 2025), which differs in that alone. Any number of key/value heads and a tied head fit too.

Our RoPE turns the neighbours (2i, 2i + 1) of a head of width K, as published, transformers' the pair (i, i + K/2). The
scores are the same once the rows that make queries and keys are put in the other order:

    >>> to_halves(torch.tensor([0, 1, 2, 3, 4, 5]), d_head=6)
    tensor([0, 2, 4, 1, 3, 5])
"""

import torch
from torch import Tensor

from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.model.transformer import TransformerLM

NEEDED_SWITCHES = {"norm": "rmsnorm", "norm_position": "pre", "position": "rope", "ffn": "swiglu"}

_OUTER_NAMES = {"token_embeddings": "model.embed_tokens", "ln_final": "model.norm", "lm_head": "lm_head"}
_LAYER_NAMES = {
    "ln1": "input_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "ln2": "post_attention_layernorm",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w2": "mlp.down_proj",
    "ffn.w3": "mlp.up_proj",
}
_TURNED = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")


def check_layout(config: ModelConfig) -> None:
    """Raise a UserError that names every switch that is not Llama's, with the value that it would have to have."""
    wrong = [
        f"model.{name} is {getattr(config, name)} and would have to be {needed}"
        for name, needed in NEEDED_SWITCHES.items()
        if getattr(config, name) != needed
    ]
    if wrong:
        raise UserError(
            f"the model has no layout that other programs know: {', '.join(wrong)}; train it so to export it"
        )


def hugging_face_config(model: TransformerLM, end_of_text_id: int) -> dict[str, object]:
    """The `config.json` of a model that passed `check_layout`."""
    config = model.config
    return {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if config.qk_norm else "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": model.ln_final.eps,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
    }


def llama_name(name: str) -> str:
    """Llama's name of one of our parameters: `layers.0.ffn.w2.weight` is `model.layers.0.mlp.down_proj.weight`."""
    module, _, kind = name.rpartition(".")
    if module in _OUTER_NAMES:
        return f"{_OUTER_NAMES[module]}.{kind}"
    _, index, inner = module.split(".", maxsplit=2)
    return f"model.layers.{index}.{_LAYER_NAMES[inner]}.{kind}"


def is_turned(name: str) -> bool:
    """Whether the rows of this parameter, by either name, make what RoPE turns."""
    return name.endswith(_TURNED)


def to_halves(rows: Tensor, d_head: int) -> Tensor:
    """Rows (H K, ...) for a RoPE that turns halves, from those for one that turns neighbours."""
    return rows.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)


def to_neighbours(rows: Tensor, d_head: int) -> Tensor:
    """The inverse of `to_halves`."""
    return rows.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)


def llama_weights(model: TransformerLM, halves: bool) -> dict[str, torch.Tensor]:
    """The weights by Llama's names, a tied matrix once; with `halves` for a RoPE that turns halves."""
    weights = {}
    for name, weight in model.named_parameters():
        rows = weight.detach()
        if halves and is_turned(name):
            rows = to_halves(rows, model.config.d_head)
        weights[llama_name(name)] = rows.contiguous()
    return weights
