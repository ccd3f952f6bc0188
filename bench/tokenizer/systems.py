"""The systems that are compared: how each trains, encodes and decodes in memory, in its fastest way.

A system is a class. Its methods tell which tasks it takes part in:

- `train(source, vocab_size, threads)` learns merges with GPT-2's pattern and returns the size of the vocabulary.
  `trains_from` tells what `source` is: `path`, the path of the text, or `documents`, a list of str.
- `System(folder, threads)` builds a tokenizer with empty caches from the files that `write_files` wrote.
- `encode(text)` returns the token ids of one text as an array or a list. `<|endoftext|>` in it is the special token.
- `encode_documents(texts)` returns the token ids of each text, or a pair: all ids in one array, and the offsets of the
  documents in it.
- `decode(ids)` returns the text. `decodes` tells what `ids` is: `array`, a NumPy array of uint32, or `list`.

Each system sets its number of threads in its own way, if it has one; the caller also sets RAYON_NUM_THREADS and the
processors that the process may use. Each library is imported only by its own class, so that the others can be measured
without it.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from lm.corpus.config import END_OF_TEXT
from lm.export.tokenizer_json import tokenizer_json
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

_HUGGING_FACE = "tokenizer.json"  # read by tokenizers, fastokens, snaptokens, tuetoken
_RANKS = "ranks.tiktoken"  # read by gigatoken and tiktoken
_GIGATOKEN_PATTERNS = {"gpt2": "gpt2", "gpt4": "gpt4", "gpt4o": "o200k", "qwen2": "qwen2"}  # its names for them
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


def write_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer in every format that a system reads."""
    tokenizer.save(folder)
    lines = [
        base64.b64encode(token).decode() + f" {token_id}\n"
        for token_id, token in sorted(tokenizer.vocab.items())
        if token_id != tokenizer.end_of_text_id
    ]
    (folder / _RANKS).write_text("".join(lines), encoding="utf-8")
    content = tokenizer_json(tokenizer)
    if tokenizer.pattern == "gpt2":
        # The same cuts as GPT-2's own file writes them, which the systems recognize and have fast code for.
        content["pre_tokenizer"] = {**_BYTE_LEVEL, "trim_offsets": True, "use_regex": True}
    (folder / _HUGGING_FACE).write_text(json.dumps(content), encoding="utf-8")


class Tiktoken:
    decodes = "list"

    def __init__(self, folder: Path, threads: int) -> None:
        from tiktoken import Encoding

        ranks, special = _read_ranks(folder)
        pattern = PATTERNS[_read_pattern(folder)]
        self._encoding = Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self._threads = threads

    def encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special="all")

    def encode_documents(self, texts: list[str]) -> list[Any]:
        if self._threads == 1:
            return [self._encoding.encode_to_numpy(text, allowed_special="all") for text in texts]
        return self._encoding.encode_batch(texts, num_threads=self._threads, allowed_special="all")

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)


class Lm:
    trains_from = "path"
    decodes = "array"

    def __init__(self, folder: Path, threads: int) -> None:
        self._tokenizer = Tokenizer.load(folder)
        self._threads = threads

    @staticmethod
    def train(source: Path, vocab_size: int, threads: int) -> int:
        from lm.tokenizer.training.bpe import train_bpe

        _, merges = train_bpe(source, vocab_size, [END_OF_TEXT], num_threads=threads)
        return 256 + len(merges) + 1

    def encode(self, text: str) -> np.ndarray:
        return self._tokenizer.encode_array(text, num_threads=self._threads)

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        return self._tokenizer.encode_batch(texts, num_threads=self._threads)

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids)


class Gigatoken:
    """It uses a second thread only for several documents."""

    trains_from = "path"
    decodes = "array"

    def __init__(self, folder: Path, threads: int) -> None:
        from gigatoken import Tokenizer as Gigatokenizer

        if (pattern := _read_pattern(folder)) not in _GIGATOKEN_PATTERNS:
            raise ValueError(f"does not have the pattern {pattern}")
        special = _read_ranks(folder)[1]
        self._tokenizer = Gigatokenizer.from_tiktoken(folder / _RANKS, _GIGATOKEN_PATTERNS[pattern], special)
        self._parallel = threads > 1

    @staticmethod
    def train(source: Path, vocab_size: int, threads: int) -> int:
        from gigatoken import train_bpe

        return len(train_bpe(str(source), vocab_size, [END_OF_TEXT])[0])

    def encode(self, text: str) -> np.ndarray:
        return self._tokenizer.encode(text)

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        lists = self._tokenizer.encode_batch(texts, parallel=self._parallel).layout
        return lists.content.data, lists.offsets.data

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids).decode(errors="replace")


class Snaptokens:
    """Its `encode` returns a list; a flat batch of one text is faster."""

    decodes = "list"

    def __init__(self, folder: Path, threads: int) -> None:
        from snaptokens import Tokenizer as Snaptokenizer

        self._tokenizer = Snaptokenizer.from_file(str(folder / _HUGGING_FACE))

    def encode(self, text: str) -> np.ndarray:
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = self._tokenizer.encode_batch_flat(texts)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


class Fastokens(Snaptokens):
    """snaptokens is derived from it and has the same interface."""

    def __init__(self, folder: Path, threads: int) -> None:
        from fastokens import Tokenizer as Fastokenizer

        self._tokenizer = Fastokenizer.from_file(str(folder / _HUGGING_FACE))


class Tokenizers:
    """The library of Hugging Face."""

    trains_from = "documents"
    decodes = "list"

    def __init__(self, folder: Path, threads: int) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        self._tokenizer = HuggingFaceTokenizer.from_file(str(folder / _HUGGING_FACE))

    @staticmethod
    def train(source: list[str], vocab_size: int, threads: int) -> int:
        from tokenizers import Tokenizer as HuggingFaceTokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = HuggingFaceTokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        alphabet = ByteLevel.alphabet()
        trainer = BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(source, trainer)
        return tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class Tuetoken:
    """Measured only in decoding: its encoding is slower than that of the others and reads special tokens as text."""

    decodes = "array"

    def __init__(self, folder: Path, threads: int) -> None:
        from tuetoken import Tokenizer as Tuetokenizer

        self._tokenizer = Tuetokenizer(str(folder / _HUGGING_FACE))

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode_array(ids)


class Gigabpe:
    """It reads `<|endoftext|>` as text, and its vocabulary has only those bytes that occur."""

    trains_from = "path"

    @staticmethod
    def train(source: Path, vocab_size: int, threads: int) -> int:
        from gigabpe import train_bpe

        vocab, _ = train_bpe(
            [str(source)], vocab_size, special_tokens=[END_OF_TEXT], pretokenizer="bytelevel", threads=threads
        )
        return len(vocab)


class Rustbpe:
    """The trainer of nanochat. It has no special tokens, so 1 is added to the size of its vocabulary."""

    trains_from = "documents"

    @staticmethod
    def train(source: list[str], vocab_size: int, threads: int) -> int:
        from rustbpe import Tokenizer as RustbpeTokenizer

        tokenizer = RustbpeTokenizer()
        tokenizer.train_from_iterator(iter(source), vocab_size - 1, pattern=PATTERNS["gpt2"])
        return tokenizer.vocab_size + 1


class Ffbpe:
    trains_from = "documents"

    @staticmethod
    def train(source: list[str], vocab_size: int, threads: int) -> int:
        from ffbpe import train_bpe

        return len(train_bpe(source, vocab_size=vocab_size, special_tokens=[END_OF_TEXT]).vocab)


# By package name. In each task, the results of the first system are those that the others must have.
SYSTEMS: dict[str, type[Any]] = {
    "tiktoken": Tiktoken,
    "lm": Lm,
    "gigatoken": Gigatoken,
    "snaptokens": Snaptokens,
    "fastokens": Fastokens,
    "tokenizers": Tokenizers,
    "tuetoken": Tuetoken,
    "gigabpe": Gigabpe,
    "rustbpe": Rustbpe,
    "ffbpe": Ffbpe,
}


def _read_ranks(folder: Path) -> tuple[dict[bytes, int], dict[str, int]]:
    """Return the tokens with their ranks, and the special token with its id, which only vocab.json has."""
    lines = (folder / _RANKS).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special_id = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))[END_OF_TEXT]
    return ranks, {END_OF_TEXT: special_id}


def _read_pattern(folder: Path) -> str:
    return json.loads((folder / "pre_tokenizer.json").read_text(encoding="utf-8"))["pattern"]
