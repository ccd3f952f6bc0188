"""Print texts in a terminal as they are generated, and ask for prompts and settings in an interactive session."""

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
from lm.generation.generate import requests, stream, window_notice
from lm.tokenizer.tokenizer import Tokenizer

_SETTINGS = [field.name for field in dataclasses.fields(SampleConfig) if field.name != "prompts"]
_HELP = """Type the beginning of a text, or an empty line to let the model begin. Ctrl-C stops a text, Ctrl-D quits.
/NAME VALUE changes a setting, /NAME shows it, / shows all settings."""


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """Generates texts for a terminal, one at a time.

    `batch` has one row. `TextStream` explains `stop`, and `Request` explains `slide`.
    """

    batch: Batch
    tokenizer: Tokenizer
    context_length: int
    stop: Sequence[str]
    slide: bool

    def write(self, prompt: str, config: SampleConfig) -> None:
        """Print the samples of a prompt to stdout as they are generated, and notices and the speed to stderr.

        Raises:
            UserError: the prompt cannot be encoded or is too long, or the model's logits are not finite.
        """
        pending = requests(self.tokenizer, prompt, config, self.slide)
        prompt_tokens = len(self.tokenizer.encode_prompt(prompt))
        if notice := window_notice(prompt_tokens, config.max_new_tokens, self.context_length, self.slide):
            _print_to_stderr(notice)
        started, num_tokens, last = time.perf_counter(), 0, -1
        with contextlib.closing(stream(self.batch, self.tokenizer, pending, self.stop)) as pieces:
            for index, piece, reply in pieces:
                start = "" if index == last else ("\n" if index else "") + prompt
                print(start + piece, end="", flush=True)
                if reply.finish == "diverged":
                    print()
                    raise UserError("the model's logits are not finite, because its training diverged; train it again")
                num_tokens, last = num_tokens + 1, index
        print()
        rate = num_tokens / (time.perf_counter() - started)
        _print_to_stderr(f"{num_tokens} tokens, {rate:,.0f} tokens/s, seed {config.seed}")

    def converse(self, config: SampleConfig, read: Callable[[str], str] = input) -> None:
        """Read lines with a prompt or a setting until the input ends, and write the samples of each prompt.

        `num_samples` is added to the seed after each prompt, so that the same prompt gives new texts.

        Raises:
            UserError: the process was started without stdin, as with `<&-`.
        """
        if sys.stdin is None:
            raise UserError("stdin: closed; an interactive session reads prompts from it")
        with contextlib.suppress(ImportError):  # on Windows
            importlib.import_module("readline")  # gives `input` the arrow keys and a history
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes that are not UTF-8 become surrogates, which `write` refuses, instead of ending the session.
            sys.stdin.reconfigure(errors="surrogateescape")
        _print_to_stderr(_HELP)
        while True:
            try:
                line = read("> ").rstrip("\r")
                if line.startswith("/"):
                    config = _set(line[1:], config)
                    continue
                self.write(line, config)
            except EOFError:
                return
            except UserError as error:
                _print_to_stderr(f"error: {error}")
            except KeyboardInterrupt:  # while a text is generated or a line is typed
                print()
            config = dataclasses.replace(config, seed=(config.seed + config.num_samples) % 2**32)


def _set(words: str, config: SampleConfig) -> SampleConfig:
    """Return the config changed by words such as `temperature 0.5`; without a value, show the setting instead.

    A mistake is reported, and the config returned unchanged.
    """
    name, _, value = words.strip().partition(" ")
    if name not in _SETTINGS or not value:
        shown = [name] if name in _SETTINGS else _SETTINGS
        if name not in ("", *_SETTINGS):
            _print_to_stderr(f"there is no setting {name!r}; the settings are:")
        _print_to_stderr("\n".join(f"/{each} {getattr(config, each)}" for each in shown))
        return config
    kind = type(getattr(config, name))
    try:
        return dataclasses.replace(config, **{name: kind(value)})
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        _print_to_stderr(str(error) if str(error).startswith(name) else f"{name}: expected {what}, got {value!r}")
        return config


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
