"""Byte-level BPE: text to token ids and back.

>>> from lm.tokenizer.training.bpe import build_vocab
>>> vocab = build_vocab([(b"l", b"o"), (b"lo", b"w")], ["<|endoftext|>"])
>>> tokenizer = Tokenizer(vocab, [(b"l", b"o"), (b"lo", b"w")], ["<|endoftext|>"])
>>> tokenizer.encode("low lot<|endoftext|>")
[257, 220, 256, 83, 258]
>>> tokenizer.decode([257, 220, 256, 83, 258])
'low lot<|endoftext|>'
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lm.atomic import make_folder
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer.encoding import files
from lm.tokenizer.encoding.encoder import PlainEncoder, refusing_half_characters, to_utf8
from lm.tokenizer.encoding.fast.decoder import BulkDecoder
from lm.tokenizer.encoding.fast.encoder import MAX_SYMBOLS, BulkEncoder
from lm.tokenizer.text.fast.build import can_load, is_compiled, is_loaded
from lm.tokenizer.text.fast.chunks import last_border, resolve_num_threads
from lm.tokenizer.text.fast.text_file import read_blocks
from lm.tokenizer.text.pretokenization import PATTERNS, PreTokenizer
from lm.tokenizer.text.text_file import read_text

_WORTH_COMPILING = 1 << 20
_WORTH_LOADING = 1 << 16
_SLICE = 1 << 16
_BATCH = 1 << 16


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds every id: uint16 for up to 65,536 tokens."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Tokenizer:
    """A vocabulary, the merges in the order of their making, the special tokens and a pattern.

    A special token whose bytes are in the vocabulary has that id; another gets the next free one, in the order given.

    Raises:
        UserError: ids that are not 0, 1, 2 ..., a token that stands twice, a byte without a token, a merge of tokens
            that no earlier merge makes or whose product is not in the vocabulary, or a pattern that is no regular
            expression.
    """

    def __init__(
        self,
        vocab: dict[int, bytes],
        merges: list[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | None = None,
        pattern: str = "gpt2",
    ) -> None:
        self.vocab = dict(vocab)
        self.merges = merges
        self.special_tokens = list(special_tokens or [])
        self.pattern = pattern
        self._pre_tokenizer = PreTokenizer(pattern, self.special_tokens)
        self._plain_pre_tokenizer = PreTokenizer(pattern)

        token_ids = _invert(self.vocab)
        self._special_ids = {}
        for text in self.special_tokens:
            token_id = token_ids.setdefault(text.encode(), len(token_ids))
            self._special_ids[text] = token_id
            self.vocab[token_id] = text.encode()
        self._symbol_ids, self._pair_symbols = _number_symbols(merges, token_ids)
        self._total_length = 0
        if self._has_bulk and is_loaded():
            _ = self._bulk_encoder, self._bulk_decoder  # made now, since they will be used

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `save` wrote; a UserError names a file that is missing, damaged or does not fit the others."""
        pattern, special_tokens = files.read_pre_tokenizer(folder / "pre_tokenizer.json")
        return cls.from_files(folder / "vocab.json", folder / "merges.txt", special_tokens, pattern)

    @classmethod
    def from_files(
        cls,
        vocab_path: str | Path,
        merges_path: str | Path,
        special_tokens: Sequence[str] | None = None,
        pattern: str = "gpt2",
    ) -> "Tokenizer":
        """Read files in GPT-2's formats, such as its own: `from_files(vocab, merges, ["<|endoftext|>"])`."""
        vocab, merges = files.read_vocab(Path(vocab_path)), files.read_merges(Path(merges_path))
        try:
            return cls(vocab, merges, special_tokens, pattern)
        except UserError as error:
            raise UserError(f"{vocab_path} and {merges_path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the three files; a UserError says why they cannot be written."""
        make_folder(folder)
        files.write_vocab(folder / "vocab.json", self.vocab)
        files.write_merges(folder / "merges.txt", self.merges)
        files.write_pre_tokenizer(folder / "pre_tokenizer.json", self.pattern, self.special_tokens)

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.vocab_size)

    @property
    def end_of_text_id(self) -> int:
        if END_OF_TEXT not in self._special_ids:
            raise UserError(f"the tokenizer has no special token {END_OF_TEXT!r}; add it to tokenizer.special_tokens")
        return self._special_ids[END_OF_TEXT]

    @cached_property
    def hash(self) -> str:
        """sha256, in hexadecimal, of all that determines the ids of a text."""
        determining = {
            "vocab": [self.vocab[token_id].hex() for token_id in range(self.vocab_size)],
            "merges": [[left.hex(), right.hex()] for left, right in self.merges],
            "special_ids": self._special_ids,
            "pattern": self._pre_tokenizer.pattern,
        }
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """The ids of `text`; without `allow_special`, special tokens in it are text like any other.

        Raises:
            UserError: the text holds half of a surrogate pair, which is no character and has no bytes.
        """
        if self._is_bulk(len(text)):
            return self.encode_array(text, allow_special, num_threads=1).tolist()
        return list(self._plain_encode([text], allow_special))

    def encode_array(self, text: str, allow_special: bool = True, num_threads: int | None = None) -> np.ndarray:
        """The same as an array of `dtype`, worked out by `num_threads` threads, by default one for each core."""
        num_threads = resolve_num_threads(num_threads, len(text))
        if not self._is_bulk(len(text)):
            return np.fromiter(self._plain_encode([text], allow_special), self.dtype)
        with refusing_half_characters():
            return self._bulk_encoder.encode_text(text, allow_special, num_threads)

    def encode_batch(
        self, texts: Sequence[str], allow_special: bool = True, num_threads: int | None = None
    ) -> list[np.ndarray]:
        """The same of each of many texts."""
        length = sum(map(len, texts))
        num_threads = resolve_num_threads(num_threads, length)
        if not self._is_bulk(length):
            return [np.fromiter(self._plain_encode([text], allow_special), self.dtype) for text in texts]
        with refusing_half_characters():
            return list(self._bulk_encoder.encode_texts(texts, allow_special, num_threads))

    def encode_file(self, path: Path, num_threads: int | None = None) -> Iterator[np.ndarray]:
        """Yield the ids of a text file in arrays of `dtype`, in constant memory, under a progress bar.

        Raises:
            UserError: the file cannot be read, or holds bytes that are not UTF-8.
        """
        length = path.stat().st_size if path.is_file() else 0
        num_threads = resolve_num_threads(num_threads, length)
        progress = f"encoding {path.name}"
        if self._is_bulk(length):
            yield from self._bulk_encoder.encode_blocks(read_blocks(path, progress), True, num_threads)
            return
        ids = self._plain_encode(read_text(path, progress), True)
        while len(batch := np.fromiter(islice(ids, _BATCH), self.dtype)):
            yield batch

    def encode_iterable(self, chunks: Iterable[str], allow_special: bool = True) -> Iterator[int]:
        """Yield the ids of the joined chunks in constant memory, reading them only as far as needed.

        Once a megabyte has passed, that is up to 64 kB ahead. Memory is bounded as in PreTokenizer.stream: a pattern
        of one's own needs a whole document at once.
        """
        slices = (chunk[begin : begin + _SLICE] for chunk in chunks for begin in range(0, len(chunk), _SLICE))
        if not self._has_bulk:
            yield from self._plain_encode(slices, allow_special)
            return
        rest = ""

        def beginning() -> Iterator[str]:
            nonlocal rest
            length = 0
            for text in slices:
                length += len(text)
                if length >= _WORTH_COMPILING:
                    border = last_border(text, self.special_tokens if allow_special else [])
                    if border:
                        rest = text[border:]
                        yield text[:border]
                        return
                yield text

        yield from self._plain_encode(beginning(), allow_special)
        if rest:
            blocks = _gathered(chain([rest], slices))
            for ids in self._bulk_encoder.encode_blocks(blocks, allow_special, num_threads=1):
                yield from ids.tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        return str(self._decode(ids), "utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; unlike text, those of two parts of a sequence join to those of the whole."""
        return bytes(self._decode(ids))

    def _decode(self, ids: Iterable[int]) -> bytes | memoryview:
        ids = ids if isinstance(ids, np.ndarray) else list(ids)
        if self._is_bulk(4 * len(ids)):  # a token has about four bytes
            numbers = _as_uint32(ids)
            data = None if numbers is None else self._bulk_decoder.decode(numbers)
            if data is not None:
                return data
        try:
            return b"".join([self.vocab[token_id] for token_id in ids])
        except KeyError as error:
            raise UserError(f"token id: expected 0 to {self.vocab_size - 1}, got {error.args[0]}") from error

    @cached_property
    def _has_bulk(self) -> bool:
        """Whether kernels can do what this tokenizer does."""
        return self._pre_tokenizer.pattern == PATTERNS["gpt2"] and len(self._symbol_ids) <= MAX_SYMBOLS and can_load()

    def _is_bulk(self, length: int) -> bool:
        """Whether kernels are worth their start now: compiled for a large text, loaded for many small ones too."""
        self._total_length += length
        return self._has_bulk and (length >= _WORTH_COMPILING or self._total_length >= _WORTH_LOADING and is_compiled())

    @cached_property
    def _bulk_encoder(self) -> BulkEncoder:
        return BulkEncoder(self._pair_symbols, self._symbol_ids, self._special_ids, self.dtype)

    @cached_property
    def _bulk_decoder(self) -> BulkDecoder:
        return BulkDecoder([self.vocab[token_id] for token_id in range(self.vocab_size)])

    @cached_property
    def _plain_encoder(self) -> PlainEncoder:
        return PlainEncoder(self._pair_symbols, self._symbol_ids, self._special_ids)

    def _plain_encode(self, chunks: Iterable[str], allow_special: bool) -> Iterator[int]:
        return self._plain_encoder.encode(chunks, self._pre_tokenizer if allow_special else self._plain_pre_tokenizer)


def _gathered(texts: Iterable[str]) -> Iterator[bytes]:
    """The texts as bytes, small ones joined."""
    waiting: list[str] = []
    length = 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= _SLICE:
            yield to_utf8("".join(waiting))
            waiting, length = [], 0
    yield to_utf8("".join(waiting))


def _as_uint32(ids: np.ndarray | list[int]) -> np.ndarray | None:
    """The ids for a kernel; None if they are no such numbers."""
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or ids.min(initial=0) < 0 or ids.max(initial=0) >= 1 << 32:
            return None
        return np.ascontiguousarray(ids, np.uint32)
    try:
        return np.frombuffer(array("I", ids), np.uint32)  # a third of the time that numpy takes for a list
    except (OverflowError, TypeError):
        return None


def _invert(vocab: dict[int, bytes]) -> dict[bytes, int]:
    """From token to id, with the vocabulary checked."""
    token_ids: dict[bytes, int] = {}
    for expected, token_id in enumerate(sorted(vocab)):
        if token_id != expected:
            raise UserError(f"expected the ids 0 to {len(vocab) - 1}, but {expected} is missing")
        token = vocab[token_id]
        if token in token_ids:
            raise UserError(f"the token {token!r} stands twice, under the ids {token_ids[token]} and {token_id}")
        token_ids[token] = token_id
    for byte in range(256):
        if bytes([byte]) not in token_ids:
            raise UserError(f"the byte {byte:#04x} has no token")
    return token_ids


def _number_symbols(
    merges: list[tuple[bytes, bytes]], token_ids: dict[bytes, int]
) -> tuple[list[int], dict[tuple[int, int], int]]:
    """Number the bytes by their value and the products of the merges from 256 on, whatever their ids.

    Returns:
        The id of each symbol, and the symbol that each pair of symbols makes.
    """
    symbols = {bytes([byte]): byte for byte in range(256)}
    pair_symbols = {}
    for number, (left, right) in enumerate(merges, start=1):
        name = f"merge {number} ({left!r}, {right!r})"
        for token in (left, right):
            if token not in symbols:
                raise UserError(f"{name}: no earlier merge makes {token!r}")
        product = left + right
        if product in symbols:
            raise UserError(f"{name}: {product!r} was made before")
        if product not in token_ids:
            raise UserError(f"{name}: {product!r} is not in the vocabulary")
        pair_symbols[symbols[left], symbols[right]] = symbols[product] = len(symbols)
    return [token_ids[token] for token in symbols], pair_symbols
