"""The models of the systems that are compared, all of the same shape.

A system is a class. `System(config, vocab_size, attention, checkout)` builds its `model` of that shape, and
`loss(inputs, targets)` returns the system's own loss, in nats per token, computed with `model`, which may be compiled.
`attention` is one of `attentions(...)`; `checkout` is the folder of the source code of a system that is not a package.

All models have the same width, heads, vocabulary and context, and an output head that is not tied to the embeddings.
`transformers`, `llama2c` and `litgpt` compute the same function as ours. The first two have `load_weights`, which
copies our weights, and must then have our loss. nanoGPT has learned positions and a GELU layer of width 4 d_model
instead of SwiGLU, which is about as many parameters. GPT-2 is compared only in time to loss.

Each library is imported only by its own class, so that the others can be measured without it.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lm.export.llama import hugging_face_config, llama_weights
from lm.model.config import AttentionBackend, ModelConfig
from lm.model.transformer import TransformerLM

_EPS = 1e-5  # of every RMSNorm


class Lm:
    """This project's model, with weights drawn from a fixed seed."""

    def __init__(
        self, config: ModelConfig, vocab_size: int, attention: AttentionBackend = "sdpa", checkout: Path | None = None
    ) -> None:
        torch.manual_seed(1)
        self.model = TransformerLM(config, vocab_size, attention)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())


class _HuggingFace:
    """A model of transformers."""

    model: Any

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        # `shift_labels` are the targets. `labels` would be shifted; without them the model returns no loss.
        return self.model(input_ids=inputs, labels=targets, shift_labels=targets).loss


class Transformers(_HuggingFace):
    """The Llama of transformers."""

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, checkout: Path | None = None) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.device("meta"):  # only its shape is needed here
            ours = TransformerLM(config, vocab_size)
        settings = hugging_face_config(ours, end_of_text_id=0) | {"use_cache": False}
        self.model = LlamaForCausalLM(LlamaConfig.from_dict(settings, attn_implementation=attention))

    def load_weights(self, model: TransformerLM) -> None:
        self.model.load_state_dict(llama_weights(model, half_split=True))


class Gpt2(_HuggingFace):
    """The GPT-2 of transformers, with its tied head; `d_ff` is the width of its feed-forward layers."""

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, checkout: Path | None = None) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(1)
        settings = {
            "vocab_size": vocab_size,
            "n_positions": config.context_length,
            "n_embd": config.d_model,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.d_ff,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "use_cache": False,
        }
        self.model = GPT2LMHeadModel(GPT2Config.from_dict(settings, attn_implementation=attention))


class NanoGpt:
    """The model of a nanoGPT checkout; its head is tied only if the config says so."""

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, checkout: Path | None) -> None:
        module = _model_module(checkout)
        settings = module.GPTConfig(
            block_size=config.context_length,
            vocab_size=vocab_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_embd=config.d_model,
            dropout=0.0,
            bias=False,
        )
        self.model = module.GPT(settings)
        if not config.tie_embeddings:
            self.model.lm_head.weight = nn.Parameter(self.model.lm_head.weight.detach().clone())

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model(inputs, targets)[1]


class Llama2c:
    """The PyTorch model of a llama2.c checkout, its head untied."""

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, checkout: Path | None) -> None:
        module = _model_module(checkout)
        settings = module.ModelArgs(
            dim=config.d_model,
            n_layers=config.num_layers,
            n_heads=config.num_heads,
            n_kv_heads=config.num_kv_heads,
            vocab_size=vocab_size,
            hidden_dim=config.d_ff,
            norm_eps=_EPS,
            max_seq_len=config.context_length,
            dropout=0.0,
        )
        self.model = module.Transformer(settings)
        self.model.output.weight = nn.Parameter(self.model.output.weight.detach().clone())

    def load_weights(self, model: TransformerLM) -> None:
        weights = llama_weights(model, half_split=False)
        self.model.load_state_dict({llama2c_name(name): weight for name, weight in weights.items()})

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.model(inputs, targets)
        return self.model.last_loss


class LitGpt:
    """The model of the package litgpt."""

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, checkout: Path | None = None) -> None:
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy

        settings = Config(
            block_size=config.context_length,
            vocab_size=vocab_size,
            padded_vocab_size=vocab_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_query_groups=config.num_kv_heads,
            n_embd=config.d_model,
            intermediate_size=config.d_ff,
            rotary_percentage=1.0,
            rope_base=int(config.rope_theta),
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=_EPS,
            mlp_class_name="LLaMAMLP",
        )
        self.model = GPT(settings)
        # As litgpt's pretraining does: with the layers' default weights, the first loss is far from ln(vocab_size).
        for module in self.model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self._cross_entropy = chunked_cross_entropy

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._cross_entropy(self.model(inputs), targets, chunk_size=0)


SYSTEMS: dict[str, type[Any]] = {
    "lm": Lm,
    "transformers": Transformers,
    "nanogpt": NanoGpt,
    "llama2c": Llama2c,
    "litgpt": LitGpt,
    "gpt2": Gpt2,
}
SAME_FUNCTION = tuple(name for name, system in SYSTEMS.items() if hasattr(system, "load_weights"))
CHECKOUTS = ("nanogpt", "llama2c")  # the systems that are not packages


_ATTENTIONS = {  # for the systems that have a choice
    "cpu": {"lm": ("flash", "sdpa"), "transformers": ("sdpa", "eager")},
    "cuda": {"lm": ("sdpa", "flash"), "transformers": ("sdpa", "eager")},
}


def attentions(system: str, device: str) -> tuple[str, ...]:
    """Return the attention implementations of a system that are worth trying on `device`, `cpu` or `cuda`."""
    return _ATTENTIONS[device].get(system, ("sdpa",))


def llama2c_name(name: str) -> str:
    """Return llama2.c's name of a Llama parameter, which is Meta's.

    Example: `model.layers.0.self_attn.q_proj.weight` is `layers.0.attention.wq.weight`.
    """
    names = {
        "model.embed_tokens.": "tok_embeddings.",
        "model.layers.": "layers.",
        "model.norm.": "norm.",
        "lm_head.": "output.",
        "self_attn.q_proj.": "attention.wq.",
        "self_attn.k_proj.": "attention.wk.",
        "self_attn.v_proj.": "attention.wv.",
        "self_attn.o_proj.": "attention.wo.",
        "mlp.gate_proj.": "feed_forward.w1.",
        "mlp.down_proj.": "feed_forward.w2.",
        "mlp.up_proj.": "feed_forward.w3.",
        "input_layernorm.": "attention_norm.",
        "post_attention_layernorm.": "ffn_norm.",
    }
    for llama, llama2c in names.items():
        name = name.replace(llama, llama2c)
    return name


def _model_module(checkout: Path | None) -> ModuleType:
    """Import the `model.py` of a checkout."""
    if checkout is None:
        raise ValueError("this system needs the folder of a checkout")
    name = f"{checkout.name}_model"
    spec = importlib.util.spec_from_file_location(name, checkout / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{checkout / 'model.py'} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
