import argparse
from pathlib import Path

import pytest
import torch

from lm.cli import generate
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.model.files import save_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def run(small, project, tmp_path, capsys):
    """Call `lm generate` for a small model, with further arguments, and return what it prints."""
    tokenizer = Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])
    tokenizer.save(tmp_path / "tokenizer")
    torch.manual_seed(0)
    save_model(tmp_path / "model", TransformerLM(small, tokenizer.vocab_size), tokenizer.hash)
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)

    def run(*arguments: str, params: Path = project / "params.yaml") -> str:
        files = [
            "--model",
            str(tmp_path / "model"),
            "--tokenizer",
            str(tmp_path / "tokenizer"),
            "--params",
            str(params),
        ]
        generate.run(parser.parse_args([*files, "--num-samples", "1", "--max-new-tokens", "6", *arguments]))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_dtype_continues_the_prompt(run, dtype):
    text = run("Once", "--temperature", "0", "--dtype", dtype)
    assert text.startswith("Once") and text == run("Once", "--temperature", "0", "--dtype", dtype)


def test_int8_on_a_device_that_cannot_is_a_one_line_error(run, monkeypatch):
    monkeypatch.setattr("lm.device.pick_device", lambda _: torch.device("meta"))
    with pytest.raises(UserError) as caught:
        run("Once", "--dtype", "int8")
    assert str(caught.value) == "--dtype: int8 needs the CPU, got meta; use bfloat16, or set runtime.device to cpu"
