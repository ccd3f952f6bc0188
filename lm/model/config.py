"""The section `model` of params.yaml: the shape of the Transformer and its switches."""

from dataclasses import dataclass
from typing import Literal

from lm.schema import check_range

Norm = Literal["rmsnorm", "layernorm", "none"]
NormPosition = Literal["pre", "post"]
Position = Literal["rope", "learned", "none"]
FeedForward = Literal["swiglu", "silu", "relu_squared"]
AttentionBackend = Literal["auto", "flash", "sdpa", "reference"]  # see `lm.model.attention.causal_attention`


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`d_ff` is the width of SwiGLU's hidden layer; the other values of `ffn` use 3/2 of it, for equal parameters.

    `canon` puts a Canon layer in front of each attention and each feed-forward layer (see `lm.model.canon`).
    """

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    d_ff: int
    context_length: int
    rope_theta: float
    norm: Norm
    norm_position: NormPosition
    position: Position
    qk_norm: bool
    ffn: FeedForward
    canon: bool
    tie_embeddings: bool

    def __post_init__(self) -> None:
        check_range(self, ("num_layers", "num_heads", "num_kv_heads"), 1, 2**14)
        check_range(self, ("d_model", "d_ff"), 1, 2**20)
        check_range(self, ("context_length",), 1, 2**24)
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model: expected a multiple of num_heads = {self.num_heads}, got {self.d_model}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: expected a divisor of num_heads = {self.num_heads}, got {self.num_kv_heads}"
            )
        if self.position == "rope" and self.d_head % 2:
            raise ValueError(f"num_heads: rope needs an even d_model / num_heads, got {self.d_head}")
        if self.ffn != "swiglu" and self.d_ff % 2:
            raise ValueError(f"d_ff: expected an even number ({self.ffn} uses 3/2 of it), got {self.d_ff}")
        if not 0 < self.rope_theta < 1e30:
            raise ValueError(f"rope_theta: expected a positive number below 1e30, got {self.rope_theta}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.num_heads
