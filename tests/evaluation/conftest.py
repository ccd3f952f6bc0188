"""A grammar with few texts, and a model that knows their distribution exactly."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from lm.corpus.config import END_OF_TEXT
from lm.corpus.grammar import Grammar
from lm.generation.config import SampleConfig
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.manifest import sampled_sha256, write_manifest
from tests.corpus.test_grammar import SMALL, enumerate_small

END = 256


class Oracle:
    """Has the distribution of the grammar's texts, in bytes, as if they had been memorized.

    With `forget_names`, it does not look back: each name in the text counts as any name.
    """

    def __init__(self, forget_names: bool = False) -> None:
        self.config = SimpleNamespace(context_length=200)
        self.vocab_size = 257
        self.lm_head = SimpleNamespace(weight=torch.zeros(1))
        self.forget_names = forget_names
        self.following: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for text, probability in enumerate_small().items():
            ids = [*text.encode(), END]
            for position, following in enumerate(ids):
                self.following[self._key(text[:position])][following] += probability

    def _key(self, prefix: str) -> str:
        if self.forget_names:
            for name in ("Ann", "Eve", "Bob"):
                prefix = prefix.replace(name, "NAME")
        return prefix

    def __call__(self, token_ids: Tensor) -> Tensor:
        logits = torch.full((*token_ids.shape, 257), -1e4, dtype=torch.float64)
        for row, ids in enumerate(token_ids.tolist()):
            for position in range(len(ids)):
                known = self.following.get(self._key(bytes(i for i in ids[1 : position + 1] if i < END).decode()), {})
                for following, probability in known.items():
                    logits[row, position, following] = math.log(probability / sum(known.values()))
        return logits


class OracleDecoder:
    """Decodes without a cache."""

    def __init__(self, model: Oracle, num_rows: int) -> None:
        self.model, self.context_length = model, 200
        self.texts: list[list[int]] = [[] for _ in range(num_rows)]

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.texts]

    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        for row, prompt in zip(rows, prompts):
            self.texts[row] = list(prompt)
        return torch.stack([self.model(torch.tensor([self.texts[row]]))[0, -1] for row in rows])

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        for row, token_id in enumerate(token_ids):
            self.texts[row] = [] if token_id is None else [*self.texts[row], token_id]
        return torch.stack([self.model(torch.tensor([text or [END]]))[0, -1] for text in self.texts[: len(token_ids)]])


@pytest.fixture
def small_grammar(monkeypatch) -> Grammar:
    """The grammar SMALL in place of the built-in one."""
    grammar = Grammar(SMALL, "small")
    for module in ("evaluate", "kinds"):
        monkeypatch.setattr(f"lm.evaluation.{module}.story_grammar", lambda: grammar)
    monkeypatch.setattr("lm.evaluation.samples.fastest_decoder", OracleDecoder)
    return grammar


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer of single bytes and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, END: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture
def tokens_of(tokenizer, tmp_path):
    """Write the token files of two lists of documents, as the stage encode_memmap does."""

    def write(train: list[str], val: list[str], entropy_bits: float | None):
        splits = {}
        for split, texts in (("train", train), ("val", val)):
            ids = np.array([i for text in texts for i in (*text.encode(), END)], dtype=np.uint16)
            path = tmp_path / f"{split}.bin"
            path.write_bytes(ids.tobytes())
            shard = {
                "count": len(ids),
                "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
                "sampled_sha256": sampled_sha256(path),
            }
            splits[split] = {
                "bytes": len("".join(texts).encode()),
                "documents": len(texts),
                "count": len(ids),
                "shards": [shard],
            }
        if entropy_bits is not None:
            splits["val"]["entropy_bits"] = entropy_bits
        write_manifest(tmp_path, tokenizer, splits)
        return tmp_path

    return write


@pytest.fixture
def sample(params) -> SampleConfig:
    return params.sample
