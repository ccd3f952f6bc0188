"""Byte-level BPE: text to token ids and back.

>>> from lm.tokenizer.training import build_vocab
>>> vocab = build_vocab([(b"l", b"o"), (b"lo", b"w")], ["<|endoftext|>"])
>>> tokenizer = Tokenizer(vocab, [(b"l", b"o"), (b"lo", b"w")], ["<|endoftext|>"])
>>> tokenizer.encode("low lot<|endoftext|>")
[257, 220, 256, 83, 258]
>>> tokenizer.decode([257, 220, 256, 83, 258])
'low lot<|endoftext|>'
"""

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

from lm.atomic import make_folder
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer import files
from lm.tokenizer.pretokenization import PreTokenizer

_GONE = -1  # no token: one that was merged into its left neighbour, or the end of the pre-token


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
        self._cache = _Cache(self._merge)

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
        return list(self.encode_iterable([text], allow_special))

    def encode_iterable(self, chunks: Iterable[str], allow_special: bool = True) -> Iterator[int]:
        """Yield the ids of the joined chunks, reading them only as far as needed, in constant memory.

        Memory is bounded as in PreTokenizer.stream: a custom pattern needs a whole document at once.
        """
        pre_tokenizer = self._pre_tokenizer if allow_special else self._plain_pre_tokenizer
        for pre_tokens, follower in pre_tokenizer.stream(chunks):
            yield from chain.from_iterable(map(self._cache.__getitem__, pre_tokens))
            if follower:
                yield self._special_ids[follower]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; unlike text, those of two parts of a sequence join to those of the whole."""
        try:
            return b"".join([self.vocab[token_id] for token_id in ids])
        except KeyError as error:
            raise UserError(f"token id: expected 0 to {self.vocab_size - 1}, got {error.args[0]}") from error

    def _merge(self, pre_token: str) -> tuple[int, ...]:
        """Apply the merges in order, each wherever its pair stands, from left to right.

        An index holds the places of every pair that can be merged, so time is about linear in the length: a line of a
        million letters is no trap. The places are looked up by the symbol that the merge makes, and since a symbol
        takes part only in later merges, the next merge is always the least symbol.
        """
        pair_symbols = self._pair_symbols
        symbols = [*_utf8(pre_token), _GONE]
        places = defaultdict(list)
        for place, pair in enumerate(zip(symbols, symbols[1:])):
            if pair in pair_symbols:
                places[pair_symbols[pair]].append(place)
        waiting = list(places)
        heapq.heapify(waiting)
        # A ring: the end, at index -1, stands before the first symbol.
        following = [*range(1, len(symbols)), 0]
        preceding = list(range(-1, len(symbols) - 1))
        while waiting:
            made = heapq.heappop(waiting)
            for place in places.pop(made):
                second = following[place]
                # Not removed from the index when another merge broke the pair up, so look whether it still stands.
                if pair_symbols.get((symbols[place], symbols[second])) != made:
                    continue
                symbols[place], symbols[second] = made, _GONE
                before, after = preceding[place], following[second]
                following[place], preceding[after] = after, place
                for left in (before, place):
                    next_made = pair_symbols.get((symbols[left], symbols[following[left]]))
                    if next_made is not None:
                        if next_made not in places:
                            heapq.heappush(waiting, next_made)
                        places[next_made].append(left)
        return tuple([self._symbol_ids[symbol] for symbol in symbols if symbol != _GONE])


class _Cache(dict[str, tuple[int, ...]]):
    """The ids of pre-tokens, worked out when first asked for; emptied when full, and long pre-tokens are not kept."""

    _MAX_ENTRIES = 1 << 15
    _MAX_LENGTH = 64

    def __init__(self, merge: Callable[[str], tuple[int, ...]]) -> None:
        self._merge = merge

    def __missing__(self, pre_token: str) -> tuple[int, ...]:
        ids = self._merge(pre_token)
        if len(pre_token) <= self._MAX_LENGTH:
            if len(self) >= self._MAX_ENTRIES:
                self.clear()
            self[pre_token] = ids
        return ids


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(f"the text holds U+{half:04X}, half of a surrogate pair, which is no character") from error


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
