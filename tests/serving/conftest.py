import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lm.corpus.config import END_OF_TEXT
from lm.generation.batch import Batch, Token
from lm.generation.config import SampleConfig
from lm.model.transformer import TransformerLM
from lm.serving.completion_request import Limits
from lm.serving.server import Server, listening
from lm.tokenizer.tokenizer import Tokenizer

Serving = Callable[..., "contextmanager[Server]"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The bytes alone, and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture(scope="session")
def random_model(small, tokenizer) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(dataclasses.replace(small, context_length=128), tokenizer.vocab_size).eval()


@pytest.fixture(scope="session")
def alphabet(small, tokenizer) -> TransformerLM:
    """After a letter comes the next letter, after z the end of text; after a digit the next digit, after 9 again 0.

    The residual stream is the token itself, one-hot, to which the blocks add nothing.
    """
    size = tokenizer.vocab_size
    shape = dataclasses.replace(
        small, d_model=size, num_heads=1, num_kv_heads=1, context_length=256, position="none", norm="none"
    )
    model = TransformerLM(shape, size).eval()
    letters, digits = b"abcdefghijklmnopqrstuvwxyz", b"01234567890"
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.token_embeddings.weight.copy_(torch.eye(size))
        for here, there in [*zip(letters, [*letters[1:], tokenizer.end_of_text_id]), *zip(digits, digits[1:])]:
            model.lm_head.weight[there, here] = 10.0
    return model


@pytest.fixture(scope="session")
def start(params) -> SampleConfig:
    return dataclasses.replace(params.sample, prompts=["abc"], max_new_tokens=20, temperature=0.0)


@pytest.fixture(scope="session")
def serving(tokenizer, start) -> Serving:
    """A server on the loopback address, at any free port, that answers until the block ends."""

    @contextmanager
    def serving(model: TransformerLM, metrics: Path = Path("metrics"), **limits: float) -> Iterator[Server]:
        with listening("127.0.0.1", 0, "tiny", model, tokenizer, start, metrics, Limits(**limits)) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return serving


@pytest.fixture
def slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes at least 5 ms, so that a test can do something meanwhile."""
    step = Batch.step

    def slow(batch: Batch) -> dict[int, Token]:
        time.sleep(0.005)
        return step(batch)

    monkeypatch.setattr(Batch, "step", slow)
