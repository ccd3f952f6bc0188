"""The Llama layout (Touvron et al. 2023), which many programs read: its configuration and the names of its weights.

A model has this layout if it has `norm: rmsnorm`, `norm_position: pre`, `position: rope` and `ffn: swiglu`. With
`qk_norm` it has the layout of Qwen3 (Yang et al. 2025), which differs only in that. Both allow any number of key/value
heads and tied embeddings.

RoPE pairs the K dimensions of a head in one of two ways. Ours is interleaved, as in the paper: it rotates the pairs
(2i, 2i + 1). transformers uses the half-split form ("rotate_half"), which rotates the pairs (i, i + K/2). Attention
scores are the same in both once the rows of the query and key projections are permuted:

    >>> to_half_split(torch.tensor([0, 1, 2, 3, 4, 5]), d_head=6)
    tensor([0, 2, 4, 1, 3, 5])
"""

from dataclasses import fields

import torch
from torch import Tensor

from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.model.norms import RMSNorm
from lm.model.transformer import TransformerLM

# Which values of each field of ModelConfig the layout can represent; None means all of them.
_REPRESENTABLE: dict[str, tuple[object, ...] | None] = {
    "d_model": None,
    "num_layers": None,
    "num_heads": None,
    "num_kv_heads": None,
    "d_ff": None,
    "context_length": None,
    "rope_theta": None,
    "norm": ("rmsnorm",),
    "norm_position": ("pre",),
    "position": ("rope",),
    "qk_norm": (False, True),
    "ffn": ("swiglu",),
    "canon": (False,),
    "tie_embeddings": (False, True),
}

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
_QK_NORMS = ("attn.q_norm", "attn.k_norm")
_ROTARY = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")


def check_layout(config: ModelConfig) -> None:
    """Check that a model with this configuration has the Llama or the Qwen3 layout.

    Raises:
        UserError: it does not. The message names every field that does not fit, and the values that would.
    """
    problems = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in _REPRESENTABLE:
            problems.append(f"model.{field.name}: not known to lm/export/llama.py")
            continue
        allowed = _REPRESENTABLE[field.name]
        if allowed is not None and value not in allowed:
            problems.append(f"model.{field.name}: expected {' or '.join(map(str, allowed))}, got {value}")
    if problems:
        raise UserError(
            f"the layouts of Llama and Qwen3 cannot represent this model: {', '.join(problems)}; "
            "train a model that fits"
        )


def hugging_face_config(model: TransformerLM, end_of_text_id: int) -> dict[str, object]:
    """Return the content of `config.json` for a model that `check_layout` accepts.

    Raises:
        UserError: the norms of the model differ in `eps`.
    """
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
        "rms_norm_eps": norm_eps(model),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
    }


def norm_eps(model: TransformerLM) -> float:
    """Return the `eps` of all norms, which the layout stores once.

    Raises:
        UserError: the norms have different values.
    """
    values = {module.eps for module in model.modules() if isinstance(module, RMSNorm)}
    if len(values) != 1:
        raise UserError(f"cannot export this model: expected one eps for all norms, got {sorted(values)}; use one")
    return values.pop()


def llama_name(name: str) -> str:
    """Return Llama's name for one of our parameters.

    Raises:
        UserError: the layout has no such parameter.

    Example:
        >>> llama_name("layers.0.ffn.w2.weight")
        'model.layers.0.mlp.down_proj.weight'
    """
    module, _, kind = name.rpartition(".")
    if kind == "weight" and module in _OUTER_NAMES:
        return f"{_OUTER_NAMES[module]}.weight"
    match module.split(".", maxsplit=2):
        case ["layers", index, inner] if kind == "weight" and inner in _LAYER_NAMES:
            return f"model.layers.{index}.{_LAYER_NAMES[inner]}.weight"
    raise UserError(f"cannot export this model: the layouts of Llama and Qwen3 have no parameter {name}")


def is_rotary(name: str) -> bool:
    """Whether the rows of this parameter, by either name, follow the pairing of RoPE."""
    return name.endswith(_ROTARY)


def to_half_split(rows: Tensor, d_head: int) -> Tensor:
    """Permute rows (H K, ...) from the interleaved order of RoPE to the half-split one."""
    return rows.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)


def to_interleaved(rows: Tensor, d_head: int) -> Tensor:
    """Permute rows (H K, ...) from the half-split order of RoPE to the interleaved one."""
    return rows.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)


def llama_weights(model: TransformerLM, half_split: bool) -> dict[str, torch.Tensor]:
    """Return the weights by their names in Llama; a tied matrix is included only once.

    `half_split` permutes the rows that RoPE rotates from the interleaved order to the half-split one.

    Raises:
        UserError: the layout and the model have different parameters.
    """
    weights = {}
    for name, weight in model.named_parameters():
        rows = weight.detach()
        if half_split and is_rotary(name):
            rows = to_half_split(rows, model.config.d_head)
        weights[llama_name(name)] = rows.contiguous()
    missing = _parameter_names(model.config) - weights.keys()
    if missing:
        raise UserError(f"cannot export this model: it has no parameter {min(missing)}, which the layout needs")
    return weights


def _parameter_names(config: ModelConfig) -> set[str]:
    """The names of all parameters that the layout needs."""
    outer = [name for name in _OUTER_NAMES if name != "lm_head" or not config.tie_embeddings]
    inner = [name for name in _LAYER_NAMES if name not in _QK_NORMS or config.qk_norm]
    names = outer + [f"layers.{index}.{name}" for index in range(config.num_layers) for name in inner]
    return {llama_name(f"{name}.weight") for name in names}
