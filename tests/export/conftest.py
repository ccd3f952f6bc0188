"""A tokenizer trained on text in several scripts, and folders of small models that use it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.model.config import ModelConfig
from lm.model.files import save_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.counting import count_pre_tokens
from lm.tokenizer.training.merges import learn_merges

END = "<|endoftext|>"
TEXT = f"""The boy didn't know: they'll say he'd 12345 sheep, and 67 goats!  Once upon a time, the boy said 'no'.
\tCafé, naïve, straße, Ǆ, ſ'ſ IT'S WE'LL; щука и ёж, 語彙と本 本屋 ١٢٣ ½ x²
   three spaces,\u00a0a hard one,\r\n\r\n emoji 🙂👩\u200d🚀 e\u0301 [...] === >>>   \n \n  {END}{END} the end \n  """


def train(pattern: str, special_tokens: list[str]) -> Tokenizer:
    merges = learn_merges(count_pre_tokens([TEXT], PreTokenizer(pattern, special_tokens)), 120)
    return Tokenizer(build_vocab(merges, special_tokens), merges, special_tokens, pattern)


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def train_tokenizer() -> Callable[[str, list[str]], Tokenizer]:
    return train


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train("gpt2", [END])


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> Tokenizer:
    """GPT-2's tokenizer."""
    return Tokenizer.from_files(shared_data / "gpt2/vocab.json", shared_data / "gpt2/merges.txt", [END])


@pytest.fixture(scope="session")
def shared_data(project: Path) -> Path:
    folder = project.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there is no shared/data folder with real texts next to the project")
    return folder


@pytest.fixture
def folders(tmp_path: Path, small: ModelConfig, tokenizer: Tokenizer) -> Callable[..., tuple[Path, Path]]:
    """Write a random model with the given switches, and its tokenizer, and return their folders."""

    def save(**switches: Any) -> tuple[Path, Path]:
        torch.manual_seed(0)
        model = TransformerLM(dataclasses.replace(small, **switches), tokenizer.vocab_size)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:  # norm weights start as ones, which would hide that two of them were swapped
                    weight.copy_(1 + 0.5 * torch.randn_like(weight))
        save_model(tmp_path / "model", model, tokenizer.hash)
        tokenizer.save(tmp_path / "tokenizer")
        return tmp_path / "model", tmp_path / "tokenizer"

    return save
