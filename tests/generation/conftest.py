import pytest

from lm.corpus.config import END_OF_TEXT
from lm.generation.config import SamplerConfig
from lm.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are the 256 bytes and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture(scope="session")
def plain() -> SamplerConfig:
    """A sampler that does not change the model's distribution."""
    return SamplerConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
