import argparse
from pathlib import Path

import pytest
import torch

from lm.cli import serve
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.model.files import save_model
from lm.model.transformer import TransformerLM
from lm.serving.page import Page
from lm.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def run(small, project, tmp_path):
    """Call `lm serve` for a small model, with further arguments."""
    tokenizer = Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])
    tokenizer.save(tmp_path / "tokenizer")
    torch.manual_seed(0)
    save_model(tmp_path / "model", TransformerLM(small, tokenizer.vocab_size), tokenizer.hash)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)

    def run(*arguments: str, model: Path = tmp_path / "model") -> None:
        files = ["--model", str(model), "--tokenizer", str(tmp_path / "tokenizer"), "--metrics", str(tmp_path)]
        serve.run(parser.parse_args([*files, "--params", str(project / "params.yaml"), "--port", "0", *arguments]))

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context-length", "0"], "--context-length: expected 1 or more, got 0"),
        (["--context-length", "17"], "--context-length: expected at most the 16 tokens that the model sees, got 17"),
        (["--rows", "0"], "--rows: expected 1 or more, got 0"),
        (["--max-tokens", "0"], "--max-tokens: expected 1 or more, got 0"),
        (["--seconds", "nan"], "--seconds: expected a positive number, got nan"),
        (["--host", ""], "--host: expected an address, got ''; use 127.0.0.1 for this machine only"),
        (["--host", "a\nb"], r"a\nb:0: cannot listen"),
        (["--host", "a\0b"], r"a\x00b:0: cannot listen"),
        (["--port", "-1"], "--port: expected 0 to 65535, got -1"),
        (["--port", "65536"], "--port: expected 0 to 65535, got 65536"),
    ],
)
def test_invalid_arguments_are_one_line_errors(run, arguments, message):
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert str(caught.value).startswith(message)


def test_the_context_is_as_long_as_the_memory_allows(run, monkeypatch):
    monkeypatch.setattr("lm.generation.decoder.available_memory", lambda *_: {"CPU": 8 * 1024})
    with pytest.raises(
        UserError, match=r"^the key/value cache for 8 texts of 16 tokens needs [\d,]+ bytes, but 8,192 b"
    ):
        run()
    monkeypatch.setattr("lm.serving.server.Server.run", lambda _: None)
    with pytest.raises(UserError, match="use a context of at most . tokens"):
        run("--rows", "8")
    run("--rows", "8", "--context-length", "2")


def test_the_name_of_a_folder_that_is_not_utf8_is_escaped(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "model").rename(tmp_path / "b\udcff")
    (tmp_path / "link").symlink_to(tmp_path / "b\udcff")
    monkeypatch.setattr("lm.serving.server.Server.run", lambda server: print(Page(server.served).render()[0]))
    run(model=tmp_path / "link")
    shown = capsys.readouterr().out
    assert r"serving b\xff at" in shown and r"<h1>b\xff" in shown
