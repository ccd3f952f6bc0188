"""The systems whose training is measured side by side: what each makes of a shape, and one step of its training.

A system is a class. `System(config, vocab_size, attention, source)` builds a model of that shape; `loss(inputs,
targets)` is its own loss, in nats a token, through `model`, which may be compiled. `attentions` names, for a kind of
device, the ways it has to compute attention that are worth trying there. `source` is the checkout or nothing.

All have the same widths, heads, vocabulary and context, and a head of its own beside the embedding. `transformers`,
`llama2c` and `litgpt` are ours in other words; the first two can `start_from` our weights, and must then have our loss.
nanoGPT has learned positions and a GELU layer of 4 d_model instead of SwiGLU's d_ff: about the same parameters.

Each library is imported where it is used, so that another may be missing.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lm.model.config import ModelConfig
from lm.training.config import OptimConfig
from lm.training.optimizer import decay_groups

_EPS = 1e-5  # of every RMSNorm


class Lm:
    attentions = {"cpu": ("reference", "sdpa"), "cuda": ("sdpa", "flash")}

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, source: Path | None) -> None:
        from lm.model.transformer import TransformerLM

        torch.manual_seed(1)
        self.model = TransformerLM(config, vocab_size, attention)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())


class Transformers:
    """Hugging Face's Llama."""

    attentions = {"cpu": ("sdpa", "eager"), "cuda": ("sdpa", "eager")}

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, source: Path | None) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        llama_config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.context_length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=_EPS,
            tie_word_embeddings=False,
            attn_implementation=attention,
            use_cache=False,
        )
        self.model = LlamaForCausalLM(llama_config)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        names = {
            "token_embeddings": "model.embed_tokens",
            "ln_final": "model.norm",
            "layers": "model.layers",
            "attn.output_proj": "self_attn.o_proj",
            "attn": "self_attn",
            "ffn.w1": "mlp.gate_proj",
            "ffn.w2": "mlp.down_proj",
            "ffn.w3": "mlp.up_proj",
            "ln1": "input_layernorm",
            "ln2": "post_attention_layernorm",
        }
        weights = _renamed(weights, names)
        d_head = self.model.config.head_dim
        for name, weight in weights.items():
            if "q_proj" in name or "k_proj" in name:
                # It turns the two halves of a head against each other, where ours turns neighbours.
                pairs = weight.view(-1, d_head // 2, 2, weight.shape[1])
                weights[name] = pairs.transpose(1, 2).reshape(weight.shape)
        self.model.load_state_dict(weights)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        # shift_labels are the targets; labels would be shifted, and are there because without them it returns no loss.
        return self.model(input_ids=inputs, labels=targets, shift_labels=targets).loss


class NanoGpt:
    attentions = {"cpu": ("sdpa",), "cuda": ("sdpa",)}

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, source: Path | None) -> None:
        module = _module(source)
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
    attentions = {"cpu": ("sdpa",), "cuda": ("sdpa",)}

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, source: Path | None) -> None:
        module = _module(source)
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

    def start_from(self, weights: dict[str, Tensor]) -> None:
        names = {
            "token_embeddings": "tok_embeddings",
            "ln_final": "norm",
            "lm_head": "output",
            "attn.q_proj": "attention.wq",
            "attn.k_proj": "attention.wk",
            "attn.v_proj": "attention.wv",
            "attn.output_proj": "attention.wo",
            "ffn": "feed_forward",
            "ln1": "attention_norm",
            "ln2": "ffn_norm",
        }
        self.model.load_state_dict(_renamed(weights, names))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.model(inputs, targets)
        return self.model.last_loss


class Gpt2:
    """Hugging Face's GPT-2, its head tied to the embedding as it was made; the width of its layers is d_ff."""

    attentions = {"cpu": ("sdpa",), "cuda": ("sdpa",)}

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, source: Path | None) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(1)
        settings = GPT2Config(
            vocab_size=vocab_size,
            n_positions=config.context_length,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation=attention,
            use_cache=False,
        )
        self.model = GPT2LMHeadModel(settings)

    loss = Transformers.loss


class LitGpt:
    attentions = {"cpu": ("sdpa",), "cuda": ("sdpa",)}

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str, source: Path | None) -> None:
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
        for module in self.model.modules():  # as its pretraining does: the layers' own start is far from ln(vocab_size)
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self._cross_entropy = chunked_cross_entropy

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._cross_entropy(self.model(inputs), targets, chunk_size=0)


SYSTEMS: dict[str, type] = {
    "lm": Lm,
    "transformers": Transformers,
    "nanogpt": NanoGpt,
    "llama2c": Llama2c,
    "litgpt": LitGpt,
}
LEARNERS = SYSTEMS | {"gpt2": Gpt2}  # of another shape, so only where it is asked which learns faster
# The same function of the same weights as ours.
SAME_FUNCTION = tuple(name for name, system in SYSTEMS.items() if hasattr(system, "start_from"))

Step = Callable[[Tensor, Tensor, float], float | Tensor]


def make_step(system: Any, optim: OptimConfig, precision: str, device: torch.device, compiled: bool) -> Step:
    """One training step of a system, given inputs, targets and the learning rate; returns the loss before the update.

    Ours is `lm.training.train_step`; the others have what a PyTorch user writes: autocast, the norm clipped by PyTorch, its
    fused AdamW, and no look at a value of the device, so that a GPU need not be waited for.
    """
    model = system.model.to(device)
    if isinstance(system, Lm):
        from lm.training.optimizer import make_optimizer
        from lm.training.train_step import TrainStep

        update = TrainStep(
            model,
            make_optimizer(model, optim),
            precision=precision,
            max_grad_norm=optim.max_grad_norm,
            compile=compiled,
        )
        return lambda inputs, targets, learning_rate: update(inputs, targets, learning_rate)[0]

    optimizer = torch.optim.AdamW(
        decay_groups(model, optim.weight_decay),
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    if compiled:
        system.model = torch.compile(model)

    def step(inputs: Tensor, targets: Tensor, learning_rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = system.loss(inputs.to(device), targets.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Weights of ours under another system's names of layers."""
    renamed = {}
    for name, weight in weights.items():
        path = f".{name}"
        for ours, theirs in names.items():  # the first that fits wins: attn.output_proj before attn
            path = path.replace(f".{ours}.", f".{theirs}.")
        renamed[path[1:]] = weight
    return renamed


def _module(source: Path | None) -> ModuleType:
    """`model.py` of a checkout."""
    if source is None:
        raise ValueError("this system needs the path of a checkout")
    name = f"{source.name}_model"
    spec = importlib.util.spec_from_file_location(name, source / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
