import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.message import Message
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from lm.corpus.config import END_OF_TEXT
from lm.generation.batch import Batch, Token
from lm.generation.config import SampleConfig
from lm.model.transformer import TransformerLM
from lm.serving.limits import Limits
from lm.serving.served_model import ServedModel
from lm.serving.server import Server, open_server
from lm.tokenizer.tokenizer import Tokenizer


def running(server: Server) -> int:
    """Return the number of texts that the server is generating."""
    return len(server.engine._running)


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true, for ten seconds at most; returns whether it is."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0, timeout=20)


def send(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Message, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer without merges: one token per byte, and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture(scope="session")
def random_model(small, tokenizer) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(dataclasses.replace(small, context_length=128), tokenizer.vocab_size).eval()


@pytest.fixture(scope="session")
def alphabet(small, tokenizer) -> TransformerLM:
    """A model that continues a letter with the next letter, z with the end of text, and a digit with the next digit.

    After 9 comes 0 again. The residual stream is the token itself, one-hot, and the blocks add nothing to it.
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
        for token, next_token in [*pairwise([*letters, tokenizer.end_of_text_id]), *pairwise(digits)]:
            model.lm_head.weight[next_token, token] = 10.0
    return model


@pytest.fixture(scope="session")
def defaults(params) -> SampleConfig:
    return dataclasses.replace(params.sample, prompts=["abc"], max_new_tokens=20, temperature=0.0)


@pytest.fixture(scope="session")
def served(tokenizer, defaults) -> Callable[..., ServedModel]:
    """Return a model with the name "tiny" and what a server needs beside it."""

    def served(model: TransformerLM, metrics: Path = Path("metrics"), **limits: Any) -> ServedModel:
        return ServedModel(
            name="tiny",
            model=model,
            tokenizer=tokenizer,
            defaults=defaults,
            metrics=metrics,
            limits=Limits(**limits),
        )

    return served


@pytest.fixture(scope="session")
def serving(served) -> Callable[..., AbstractContextManager[Server]]:
    """Run a server at a free port of the loopback address until the block ends; arguments as for `served`."""

    @contextmanager
    def serving(*args: Any, **kwargs: Any) -> Iterator[Server]:
        with open_server("127.0.0.1", 0, served(*args, **kwargs)) as server:
            thread = threading.Thread(target=server.run)
            thread.start()
            try:
                yield server
            finally:
                server.stop()
                thread.join()

    return serving


@pytest.fixture(scope="module")
def random_server(serving, random_model) -> Iterator[Server]:
    with serving(random_model, rows=4) as server:
        yield server


@pytest.fixture(scope="module")
def alphabet_server(serving, alphabet) -> Iterator[Server]:
    with serving(alphabet, rows=2, waiting=2, choices=4, request_bytes=4096, max_tokens=200) as server:
        yield server


@pytest.fixture(scope="module")
def random_client(random_server) -> Iterator[openai.OpenAI]:
    with client_of(random_server) as client:
        yield client


@pytest.fixture(scope="module")
def client(alphabet_server) -> Iterator[openai.OpenAI]:
    with client_of(alphabet_server) as client:
        yield client


@pytest.fixture
def before_each_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that takes what is to be called before every step of generation."""

    def register(call: Callable[[], object]) -> None:
        step = Batch.step

        def call_and_step(batch: Batch) -> dict[int, Token]:
            call()
            return step(batch)

        monkeypatch.setattr(Batch, "step", call_and_step)

    return register


@pytest.fixture
def slowed(before_each_step: Callable[[Callable[[], object]], None]) -> None:
    """Make every step take at least 5 ms, so that a test can do something in the meantime."""
    before_each_step(lambda: time.sleep(0.005))
