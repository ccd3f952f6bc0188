"""The shapes of the models that are compared, and the settings of AdamW that every system gets."""

from dataclasses import dataclass

from lm.model.config import ModelConfig
from lm.training.config import OptimConfig


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like model: pre-norm RMSNorm, RoPE, SwiGLU, a head that is not tied."""

    vocab_size: int
    context_length: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            d_ff=self.d_ff,
            context_length=self.context_length,
            rope_theta=10000.0,
            norm="rmsnorm",
            norm_position="pre",
            position="rope",
            qk_norm=False,
            ffn="swiglu",
            canon=False,
            tie_embeddings=False,
        )


SHAPES = {
    "17m": Shape(vocab_size=10_000, context_length=256, d_model=512, num_layers=4, num_heads=16, d_ff=1344),
    "0.8m": Shape(vocab_size=2048, context_length=256, d_model=96, num_layers=4, num_heads=4, d_ff=256),
    "125m": Shape(vocab_size=32_000, context_length=1024, d_model=768, num_layers=12, num_heads=12, d_ff=2048),
}

OPTIM = OptimConfig(  # with this learning rate every shape is stable from the first step, without warmup
    optimizer="adamw",
    max_learning_rate=3e-4,
    min_learning_rate=3e-4,
    schedule="cosine",
    warmup_steps=0,
    decay_steps=0,
    decay_shape="linear",
    weight_decay=0.1,
    cautious_weight_decay=False,
    momentum=0.95,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    max_grad_norm=1.0,
)
