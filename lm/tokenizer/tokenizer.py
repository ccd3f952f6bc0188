"""The tokenizer: text to token ids and back, with byte-level BPE.

>>> from lm.tokenizer.encoding.vocab import build_vocab
>>> merges = [(b"l", b"o"), (b"lo", b"w")]
>>> tokenizer = Tokenizer(build_vocab(merges, ["<|endoftext|>"]), merges, ["<|endoftext|>"])
>>> tokenizer.encode("low lot<|endoftext|>")
[257, 220, 256, 83, 258]
>>> tokenizer.decode([257, 220, 256, 83, 258])
'low lot<|endoftext|>'
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from lm.atomic import make_folder
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer.encoding import files
from lm.tokenizer.encoding.codec import Codec
from lm.tokenizer.encoding.hugging_face import read_tokenizer_json
from lm.tokenizer.encoding.vocab import Merges, invert_vocab, number_symbols
from lm.tokenizer.text.categories import UNICODE_VERSION
from lm.tokenizer.text.pretokenization import PreTokenizer


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest dtype that holds every id: uint16 for up to 65,536 tokens, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Tokenizer:
    """Encodes text to token ids and decodes token ids to text.

    Short texts are encoded in plain Python, long texts by compiled kernels, which return the same ids. A pattern that
    cannot be compiled (see `lm.tokenizer.text.syntax`) always takes plain Python.

    Args:
        vocab: The bytes of each token, from id to bytes.
        merges: The pairs of tokens to merge, in the order in which they were learned.
        special_tokens: Texts that are always one token. One whose bytes are in the vocabulary has that id; the others
            get the next free ids, in order.
        pattern: A name in `PATTERNS`, such as `gpt2`, or a regular expression that splits text into pre-tokens.
        ignore_merges: Whether a pre-token that is in `vocab` is one token, even if the merges do not make it.

    Raises:
        UserError: The ids are not 0, 1, 2, ..., a token appears twice, a byte has no token, a merge appears twice, uses
            a token that no merge makes, or makes one that is not in the vocabulary, or the pattern is not a valid
            regular expression.
    """

    def __init__(
        self,
        vocab: dict[int, bytes],
        merges: Merges,
        special_tokens: Sequence[str] | None = None,
        pattern: str = "gpt2",
        ignore_merges: bool = False,
    ) -> None:
        self.vocab = dict(vocab)
        self.merges = merges
        self.special_tokens = list(special_tokens or [])
        self.pattern = pattern
        self.ignore_merges = ignore_merges
        pre_tokenizer = PreTokenizer(pattern, self.special_tokens)

        token_ids = invert_vocab(self.vocab)
        whole_ids = dict(token_ids) if ignore_merges else {}
        self._special_ids = {}
        for text in self.special_tokens:
            token_id = token_ids.setdefault(text.encode(), len(token_ids))
            self._special_ids[text] = token_id
            self.vocab[token_id] = text.encode()
        symbol_ids, pairs = number_symbols(merges, token_ids)
        self._codec = Codec(self.vocab, pairs, symbol_ids, self._special_ids, whole_ids, pre_tokenizer, self.dtype)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the files that `save` wrote.

        Raises:
            UserError: A file is missing or damaged, or does not fit the others.
        """
        settings = files.read_pre_tokenizer(folder / "pre_tokenizer.json")
        return cls.from_files(
            folder / "vocab.json",
            folder / "merges.txt",
            settings.special_tokens,
            settings.pattern,
            settings.ignore_merges,
        )

    @classmethod
    def from_files(
        cls,
        vocab_path: str | Path,
        merges_path: str | Path,
        special_tokens: Sequence[str] | None = None,
        pattern: str = "gpt2",
        ignore_merges: bool = False,
    ) -> "Tokenizer":
        """Read files in GPT-2's formats, such as the files of GPT-2 itself.

        >>> Tokenizer.from_files("vocab.json", "merges.txt", ["<|endoftext|>"])  # doctest: +SKIP

        Raises:
            UserError: A file is missing or damaged, or does not fit the other.
        """
        vocab, merges = files.read_vocab(Path(vocab_path)), files.read_merges(Path(merges_path))
        try:
            return cls(vocab, merges, special_tokens, pattern, ignore_merges)
        except UserError as error:
            raise UserError(f"{vocab_path} and {merges_path}: {error}") from error

    @classmethod
    def from_hugging_face(cls, path: str | Path) -> "Tokenizer":
        """Read `tokenizer.json`, the format of Hugging Face's library tokenizers.

        The ids of a text are those of the library. What its post-processor puts before a text is left out, as with
        `encode(text, add_special_tokens=False)`.

        >>> Tokenizer.from_hugging_face("tokenizer.json")  # doctest: +SKIP

        Raises:
            UserError: The file is missing or damaged, or has a setting that changes the ids in a way that this
                tokenizer cannot reproduce, such as a normalizer; the message names the setting.
        """
        found = read_tokenizer_json(Path(path))
        try:
            return cls(found.vocab, found.merges, found.special_tokens, found.pattern, found.ignore_merges)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the tokenizer as `vocab.json`, `merges.txt` and `pre_tokenizer.json`.

        Raises:
            UserError: A file cannot be written.
        """
        make_folder(folder)
        files.write_vocab(folder / "vocab.json", self.vocab)
        files.write_merges(folder / "merges.txt", self.merges)
        files.write_pre_tokenizer(folder / "pre_tokenizer.json", self.pattern, self.special_tokens, self.ignore_merges)

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    @property
    def dtype(self) -> np.dtype:
        """The smallest dtype that holds every id."""
        return token_dtype(self.vocab_size)

    @property
    def end_of_text_id(self) -> int:
        """The id of the special token that ends every document.

        Raises:
            UserError: The tokenizer does not have this special token.
        """
        if END_OF_TEXT not in self._special_ids:
            raise UserError(f"the tokenizer has no special token {END_OF_TEXT!r}; add it to tokenizer.special_tokens")
        return self._special_ids[END_OF_TEXT]

    @cached_property
    def hash(self) -> str:
        """The SHA-256, in hexadecimal, of everything that determines the ids of a text."""
        content = {
            "vocab": [self.vocab[token_id].hex() for token_id in range(self.vocab_size)],
            "merges": [[left.hex(), right.hex()] for left, right in self.merges],
            "special_ids": self._special_ids,
            "pattern": self._codec.pattern,
        }
        # The first version is left out, so that tokenizers from before it was recorded keep their hash.
        if UNICODE_VERSION != "16.0.0":
            content["unicode_version"] = UNICODE_VERSION
        if self.ignore_merges:
            content["ignore_merges"] = True
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: The text.
            allow_special: Whether special tokens in the text become their ids. If not, they are encoded like any other
                text.

        Raises:
            UserError: The text contains half of a surrogate pair, which is not a character.
        """
        return self._codec.encode(text, allow_special)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of a text to continue, with the end-of-text token in front.

        In training, every document follows an end-of-text token. A model that reads a prompt without one sees the
        middle of a document. If the prompt begins with that token itself, no second one is added.

        Raises:
            UserError: As in `encode`.
        """
        ids = self.encode(prompt)
        return ids if ids[:1] == [self.end_of_text_id] else [self.end_of_text_id, *ids]

    def encode_array(self, text: str, allow_special: bool = True, num_threads: int | None = None) -> np.ndarray:
        """Return the ids of a text as an array of `dtype`.

        Args:
            text: The text.
            allow_special: As in `encode`.
            num_threads: How many threads to use, by default one per core.

        Raises:
            UserError: The text contains half of a surrogate pair, or `num_threads` is less than 1.
        """
        return self._codec.encode_array(text, allow_special, num_threads)

    def encode_batch(
        self, texts: Sequence[str], allow_special: bool = True, num_threads: int | None = None
    ) -> list[np.ndarray]:
        """Return the ids of each text as an array; the arguments and errors are those of `encode_array`."""
        return self._codec.encode_batch(texts, allow_special, num_threads)

    def encode_file(self, path: Path, num_threads: int | None = None) -> Iterator[np.ndarray]:
        """Yield the ids of a text file in arrays of `dtype`, in constant memory, with a progress bar.

        Raises:
            UserError: The file cannot be read, or contains bytes that are not UTF-8.
        """
        return self._codec.encode_file(path, num_threads)

    def encode_iterable(self, chunks: Iterable[str], allow_special: bool = True) -> Iterator[int]:
        """Yield the ids of the concatenated chunks in constant memory, reading chunks only when needed.

        It reads half a kilobyte ahead, and 64 kB after the first megabyte. Memory is bounded as described in
        `PreTokenizer.stream`: a pattern that cannot be compiled needs a whole document at once.

        Raises:
            UserError: The text contains half of a surrogate pair.
        """
        return self._codec.encode_iterable(chunks, allow_special)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: An id is not in the vocabulary.
        """
        return str(self._codec.decode(ids), "utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of token ids.

        A character may be split between two tokens, so only bytes, not text, can be decoded in parts and concatenated.

        Raises:
            UserError: An id is not in the vocabulary.
        """
        return bytes(self._codec.decode(ids))

    @property
    def token_without_merges(self) -> bytes | None:
        """A token that is a text but does not result from applying the merges to it, except for special tokens.

        Such tokens have an effect with `ignore_merges`, and are never used without it.
        """
        return self._codec.token_without_merges
