import sys

import pytest

from lm.cli.main import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "hf", ""],
        ["export", "gguf", ""],
        ["export", "hf", "out", "--raw", ""],
        ["export", "hf", "out", "--metrics", ""],
        ["import", "hf", "", "--model", "model", "--tokenizer", "tokenizer"],
        ["import", "hf", "from", "--model", "", "--tokenizer", "tokenizer"],
        ["import", "hf", "from", "--model", "model", "--tokenizer", ""],
        ["plan", "--checkpoints", ""],
        ["plan", "--params", ""],
        ["preset", "--params", ""],
        ["report", "--out", ""],
        ["report", "--gpt2", ""],
        ["generate", "--params", ""],
        ["generate", "--model", ""],
        ["serve", "--tokenizer", ""],
        ["serve", "--metrics", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lm", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2 and ": expected a path, got ''\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["export", "gguf", "a\udcff.gguf"], ["serve", "--model", "a\udcff"]], ids=repr)
def test_a_path_that_is_not_utf_8_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lm", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2 and r": expected a path in UTF-8, got 'a\udcff" in capsys.readouterr().err
