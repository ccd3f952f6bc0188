import dataclasses
import itertools

import pytest
import torch

from lm.errors import UserError
from lm.generation.batch import Batch
from lm.generation.config import SampleConfig
from lm.generation.decoder import Decoder
from lm.generation.generate import complete
from lm.generation.terminal import Terminal
from lm.model.transformer import TransformerLM


@pytest.fixture
def config(params) -> SampleConfig:
    return dataclasses.replace(params.sample, num_samples=2, max_new_tokens=8, temperature=1.0, seed=5)


@pytest.fixture
def terminal(small, tokenizer) -> Terminal:
    torch.manual_seed(0)
    model = TransformerLM(small, tokenizer.vocab_size).eval()
    return Terminal(batch=Batch(Decoder(model, 1)), tokenizer=tokenizer, context_length=16, stop=[], slide=True)


def texts(terminal: Terminal, prompt: str, config: SampleConfig) -> str:
    samples = complete(terminal.batch, terminal.tokenizer, prompt, config)
    return "".join(f"{sample.text}\n" for sample in samples)


def converse(terminal: Terminal, config: SampleConfig, *lines: str) -> None:
    waiting = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    terminal.converse(config, read)


def test_samples_are_printed_in_order_and_the_rate_at_the_end(terminal, config, capsys):
    expected = texts(terminal, "Hello", config)
    terminal.write("Hello", config)
    out, err = capsys.readouterr()
    assert out == expected and out.count("Hello") == 2
    number, rate = err.split(", ")[:2]
    assert number.endswith(" tokens") and 2 <= int(number.removesuffix(" tokens")) <= 16
    assert float(rate.removesuffix(" tokens/s").replace(",", "")) > 0 and err.endswith(", seed 5\n")


def test_a_notice_about_the_context_comes_first(terminal, config, capsys):
    dataclasses.replace(terminal, slide=False).write("0123456789", config)
    assert capsys.readouterr().err.startswith("the model sees 16 tokens: the text ends there\n")


def test_stop_strings_end_the_texts(terminal, config, capsys):
    whole = complete(terminal.batch, terminal.tokenizer, "Hello", config)[0].text
    dataclasses.replace(terminal, stop=[whole[7]]).write("Hello", dataclasses.replace(config, num_samples=1))
    assert capsys.readouterr().out == f"{whole[: whole.index(whole[7], 5)]}\n"


def test_a_diverged_model_is_an_error(terminal, config, capsys):
    terminal.batch._decoder.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="the model's logits are not finite"):
        terminal.write("Hello", config)
    assert capsys.readouterr().out == "Hello\n" and not terminal.batch


def test_many_samples_start_at_once(terminal, config, monkeypatch):
    steps = itertools.count()
    decode = terminal.batch._decoder.decode

    def interrupted(token_ids):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return decode(token_ids)

    monkeypatch.setattr(terminal.batch._decoder, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        terminal.write("Hello", dataclasses.replace(config, num_samples=10**6))


def test_each_line_is_continued_with_the_current_settings(terminal, config, capsys):
    expected = [
        texts(terminal, "One", config),
        texts(terminal, "Two", dataclasses.replace(config, temperature=0.5, num_samples=1, seed=7)),
        texts(terminal, "", dataclasses.replace(config, temperature=0.5, num_samples=1, seed=8)),
    ]
    capsys.readouterr()
    converse(terminal, config, "One", "/temperature 0.5", "/num_samples  1", "Two", "")
    out, err = capsys.readouterr()
    assert out == "".join(expected)
    assert "Type the beginning of a text" in err and err.count("tokens/s") == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperature", "/temperature 1.0\n"),
        ("/temperature -1", "temperature: expected 0, or 0.001 or more, got -1.0\n"),
        ("/temperature hot", "temperature: expected a number, got 'hot'\n"),
        ("/max_new_tokens 2.5", "max_new_tokens: expected a whole number, got '2.5'\n"),
        ("/max_new_tokens 0", "max_new_tokens: expected 1 or more, got 0\n"),
        ("/heat 1", "there is no setting 'heat'; the settings are:\n/num_samples 2\n/max_new_tokens 8\n"),
        ("/", "/num_samples 2\n/max_new_tokens 8\n/temperature 1.0\n"),
    ],
)
def test_showing_or_mistyping_a_setting_changes_nothing(terminal, config, capsys, line, message):
    expected = texts(terminal, "One", config)
    converse(terminal, config, line, "One")
    out, err = capsys.readouterr()
    assert message in err and out == expected


def test_ctrl_c_ends_the_text_but_not_the_session(terminal, config, capsys, monkeypatch):
    expected = texts(terminal, "Two", dataclasses.replace(config, seed=7))
    decode, calls = terminal.batch._decoder.decode, []

    def interrupted(token_ids):
        calls.append(token_ids)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(token_ids)

    monkeypatch.setattr(terminal.batch._decoder, "decode", interrupted)
    converse(terminal, config, "One", "Two")
    out = capsys.readouterr().out
    assert out.startswith("One") and out.endswith(f"\n{expected}") and not terminal.batch


def test_ctrl_c_discards_the_line_that_is_being_typed(terminal, config, capsys):
    expected = texts(terminal, "Two", dataclasses.replace(config, seed=7))
    waiting = iter([KeyboardInterrupt, "Two", EOFError])

    def read(prompt: str) -> str:
        line = next(waiting)
        if isinstance(line, str):
            return line
        raise line

    terminal.converse(config, read)
    assert capsys.readouterr().out == f"\n{expected}"


def test_a_prompt_that_is_too_long_does_not_end_the_session(terminal, config, capsys):
    fixed = dataclasses.replace(terminal, slide=False)
    converse(fixed, dataclasses.replace(config, max_new_tokens=2), "x" * 16, "Two")
    out, err = capsys.readouterr()
    assert "the prompt has 17 tokens, and the model sees 16; shorten it" in err and "are ignored" not in err
    assert out.count("Two") == 2
