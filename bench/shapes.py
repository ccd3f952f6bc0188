"""What the benchmarks of training train: the shapes, the settings of AdamW, and ids of the story grammar's text."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.model.config import ModelConfig
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe
from lm.training.config import OptimConfig

_STORIES = 3000  # about 2 MB
_TOKENIZER_VOCAB_SIZE = 2000  # the grammar has no more words to learn: the other ids of a vocabulary never occur


@dataclass(frozen=True)
class Shape:
    """A Llama-like model of the plain recipe."""

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
            tie_embeddings=False,
        )


SHAPES = {
    "17m": Shape(vocab_size=10_000, context_length=256, d_model=512, num_layers=4, num_heads=16, d_ff=1344),
    "laptop": Shape(vocab_size=2048, context_length=256, d_model=96, num_layers=4, num_heads=4, d_ff=256),
    "125m": Shape(vocab_size=32_000, context_length=1024, d_model=768, num_layers=12, num_heads=12, d_ff=2048),
}

OPTIM = OptimConfig(  # a rate at which every shape is stable from the first step, without a warm-up
    name="adamw",
    max_learning_rate=3e-4,
    min_learning_rate=3e-4,
    schedule="cosine",
    warmup_steps=0,
    decay_steps=0,
    decay_shape="linear",
    weight_decay=0.1,
    momentum=0.95,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    max_grad_norm=1.0,
)


def write_tokens(folder: Path) -> Path:
    """Stories of the grammar as ids, for the measuring processes."""
    text = folder / "stories.txt"
    text.write_bytes("".join(story.text + END_OF_TEXT for story in islice(stories(1), _STORIES)).encode())
    tokenizer = Tokenizer(*train_bpe(text, _TOKENIZER_VOCAB_SIZE, [END_OF_TEXT]), [END_OF_TEXT])
    path = folder / "tokens.npy"
    np.save(path, tokenizer.encode_array(text.read_bytes().decode()))
    return path
