"""Texts in a terminal as they come, and a conversation in which the model stays and the settings change."""

import contextlib
import dataclasses
import importlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm.errors import UserError
from lm.generation.batch import Batch
from lm.generation.config import SampleConfig
from lm.generation.generate import Reply, grow, requests, window_notice
from lm.tokenizer.tokenizer import Tokenizer

_SETTINGS = [field.name for field in dataclasses.fields(SampleConfig) if field.name != "prompts"]
_HELP = """Type the beginning of a text; an empty line leaves it to the model. Ctrl-C ends a text, Ctrl-D all.
/NAME VALUE changes a setting, /NAME shows one, / shows all."""


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What writes: a batch of one row, and what ends a text (see `TextStream` and `Request`)."""

    batch: Batch
    tokenizer: Tokenizer
    context_length: int
    stop: Sequence[str]
    slide: bool

    def write(self, prompt: str, config: SampleConfig) -> None:
        """Write samples one after the other to the standard output, and what there is to say to the error output."""
        asked = requests(self.tokenizer, prompt, config, self.slide)
        length = len(self.tokenizer.encode(prompt))
        if notice := window_notice(length, config.max_new_tokens, self.context_length, self.slide):
            _say(notice)
        replies = [Reply(self.tokenizer, self.stop) for _ in asked]
        started, num_tokens, last = time.perf_counter(), 0, -1
        for index, piece in grow(self.batch, asked, replies):
            start = "" if index == last else ("\n" if index else "") + prompt
            print(start + piece, end="", flush=True)
            num_tokens, last = num_tokens + (replies[index].finish != "diverged"), index
        print()
        if any(reply.finish == "diverged" for reply in replies):
            _say("the model gives logits that are not finite: its training diverged")
        rate = num_tokens / (time.perf_counter() - started)
        _say(f"{num_tokens} tokens, {rate:,.0f} tokens/s, seed {config.seed}")

    def converse(self, config: SampleConfig, read: Callable[[str], str] = input) -> None:
        """Write a text for every line read, until the input ends; after it the seed counts on."""
        with contextlib.suppress(ImportError):  # on Windows
            importlib.import_module("readline")  # the arrow keys, for `input`
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused below, and no end
        _say(_HELP)
        while True:
            try:
                line = read("> ").rstrip("\r")
                if line.startswith("/"):
                    config = _set(line[1:], config)
                    continue
                self.write(line, config)
            except EOFError:
                return
            except UserError as error:  # a beginning that is too long, or no text
                _say(f"error: {error}")
            except KeyboardInterrupt:  # in a text, or in a line that is typed
                print()
            config = dataclasses.replace(config, seed=(config.seed + config.num_samples) % 2**32)


def _set(words: str, config: SampleConfig) -> SampleConfig:
    """`temperature 0.5`; what is wrong is said, and changes nothing."""
    name, _, value = words.strip().partition(" ")
    if name not in _SETTINGS or not value:
        shown = [name] if name in _SETTINGS else _SETTINGS
        if name not in ("", *_SETTINGS):
            _say(f"there is no setting {name!r}; these are:")
        _say("\n".join(f"/{each} {getattr(config, each)}" for each in shown))
        return config
    kind = type(getattr(config, name))
    try:
        return dataclasses.replace(config, **{name: kind(value)})
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        _say(str(error) if str(error).startswith(name) else f"{name}: expected {what}, got {value!r}")
        return config


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
