"""The choice between plain Python and compiled kernels, which return the same ids."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lm.errors import UserError
from lm.tokenizer.encoding import fast as fast_encoding
from lm.tokenizer.encoding.encoder import Encoder, reject_surrogates, to_utf8
from lm.tokenizer.encoding.fast.decoder import FastDecoder
from lm.tokenizer.encoding.fast.encoder import MAX_SYMBOLS, FastEncoder
from lm.tokenizer.encoding.vocab import pair_symbols
from lm.tokenizer.text import fast as fast_text
from lm.tokenizer.text.automaton import find_obstacle
from lm.tokenizer.text.fast.build import can_load
from lm.tokenizer.text.fast.chunks import find_split, resolve_num_threads
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.fast.text_file import FileSource
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.text.text_file import read_text

# In characters or bytes. A text of the first length justifies compiling the kernels; texts whose total is the second
# length justify loading kernels that are already compiled.
_MIN_LENGTH_TO_COMPILE = 1 << 20
_MIN_TOTAL_LENGTH_TO_LOAD = 1 << 16
_MIN_TOKENS_FOR_KERNEL = 16
_BYTES_PER_TOKEN = 4

_SLICE_LENGTH = 1 << 16
_IDS_PER_BATCH = 1 << 16


class Codec:
    """Encodes short texts in plain Python and long ones with kernels, and decodes ids likewise.

    Its methods are those of `Tokenizer`, which documents them.

    Args:
        vocab: The bytes of each token, from id to bytes.
        pairs: The two symbols of each pair that can be merged, and the symbol that it makes, see `number_symbols`.
        symbol_ids: The id of each symbol.
        special_ids: The id of each special token.
        whole_ids: The id of each token that a pre-token with its bytes becomes without any merges.
        pre_tokenizer: Splits text with the pattern and at the special tokens.
        dtype: The dtype of the arrays of ids.
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        pairs: array,
        symbol_ids: array,
        special_ids: Mapping[str, int],
        whole_ids: Mapping[bytes, int],
        pre_tokenizer: PreTokenizer,
        dtype: np.dtype,
    ) -> None:
        self.pattern = pre_tokenizer.pattern
        self._vocab = vocab
        self._pairs = pairs
        self._symbol_ids = symbol_ids
        self._special_ids = special_ids
        self._whole_ids = whole_ids
        self._pre_tokenizer = pre_tokenizer
        self._ordinary_pre_tokenizer = PreTokenizer(self.pattern)
        self._dtype = dtype
        self._total_length = 0  # of everything encoded and decoded so far

    def encode(self, text: str, allow_special: bool) -> list[int]:
        if self._prefers_fast(len(text)):
            return self._fast_encode(text, allow_special, num_threads=1).tolist()
        return list(self.plain_encode([text], allow_special))

    def encode_array(self, text: str, allow_special: bool, num_threads: int | None) -> np.ndarray:
        num_threads = resolve_num_threads(num_threads, len(text))
        if self._prefers_fast(len(text)):
            return self._fast_encode(text, allow_special, num_threads)
        return np.fromiter(self.plain_encode([text], allow_special), self._dtype)

    def encode_batch(self, texts: Sequence[str], allow_special: bool, num_threads: int | None) -> list[np.ndarray]:
        length = sum(map(len, texts))
        num_threads = resolve_num_threads(num_threads, length)
        if self._prefers_fast(length):
            with reject_surrogates():
                return list(self.fast_encoder.encode_texts(texts, allow_special, num_threads))
        return [np.fromiter(self.plain_encode([text], allow_special), self._dtype) for text in texts]

    def encode_file(self, path: Path, num_threads: int | None) -> Iterator[np.ndarray]:
        num_bytes = path.stat().st_size if path.is_file() else 0
        num_threads = resolve_num_threads(num_threads, num_bytes)
        description = f"encoding {path.name}"
        if path.is_file() and self._prefers_fast(num_bytes):
            with FileSource.open(path, description) as source:
                yield from self.fast_encoder.encode_source(source, allow_special=True, num_threads=num_threads)
            return
        ids = self.plain_encode(read_text(path, description), allow_special=True)
        while len(batch := np.fromiter(islice(ids, _IDS_PER_BATCH), self._dtype)):
            yield batch

    def encode_iterable(self, chunks: Iterable[str], allow_special: bool) -> Iterator[int]:
        slices = (
            chunk[begin : begin + _SLICE_LENGTH] for chunk in chunks for begin in range(0, len(chunk), _SLICE_LENGTH)
        )
        if not self.supports_fast:
            yield from self.plain_encode(slices, allow_special)
            return
        rest = b""

        def beginning() -> Iterator[str]:
            """Yield the slices up to the first place after a megabyte where the text can be split."""
            nonlocal rest
            length = 0
            for text in slices:
                length += len(text)
                if length >= _MIN_LENGTH_TO_COMPILE:
                    data = to_utf8(text)
                    split = find_split(data, self.fast_encoder.automaton, self.fast_encoder.special(allow_special))
                    if split:
                        rest = data[split:]
                        yield data[:split].decode()
                        return
                yield text

        yield from self.plain_encode(beginning(), allow_special)
        if rest:
            blocks = chain([rest], _to_blocks(slices))
            for ids in self.fast_encoder.encode_blocks(blocks, allow_special):
                yield from ids.tolist()

    def decode(self, ids: Iterable[int]) -> bytes | memoryview:
        ids = ids if isinstance(ids, np.ndarray) else list(ids)
        # For a token or two, as during generation, calling the kernel takes longer than the plain path.
        if len(ids) >= _MIN_TOKENS_FOR_KERNEL and self._prefers_fast(_BYTES_PER_TOKEN * len(ids)):
            data = self._fast_decoder.decode(ids)
            if data is not None:
                return data
        try:
            return b"".join([self._vocab[token_id] for token_id in ids])
        except KeyError as error:
            raise UserError(f"token id: expected 0 to {len(self._vocab) - 1}, got {error.args[0]}") from error

    @cached_property
    def supports_fast(self) -> bool:
        """Whether the kernels can run here and support the pattern and the number of merges."""
        return can_load() and len(self._symbol_ids) <= MAX_SYMBOLS and find_obstacle(self.pattern) is None

    @cached_property
    def fast_encoder(self) -> FastEncoder:
        automaton = automaton_tables(self.pattern)
        return FastEncoder(self._pairs, self._symbol_ids, self._special_ids, self._whole_ids, automaton, self._dtype)

    @cached_property
    def token_without_merges(self) -> bytes | None:
        encoder = Encoder(pair_symbols(self._pairs), self._symbol_ids, {}, {})
        for token_id, token in self._vocab.items():
            text = token.decode(errors="replace")
            # Parts of characters are never pre-tokens.
            if text not in self._special_ids and text.encode() == token and encoder.merge(text) != (token_id,):
                return token
        return None

    @cached_property
    def _plain_encoder(self) -> Encoder:
        return Encoder(pair_symbols(self._pairs), self._symbol_ids, self._special_ids, self._whole_ids)

    @cached_property
    def _fast_decoder(self) -> FastDecoder:
        return FastDecoder([self._vocab[token_id] for token_id in range(len(self._vocab))])

    def _prefers_fast(self, length: int) -> bool:
        """Return whether to use the kernels for a text.

        A long text justifies compiling them. Many short texts only justify loading compiled ones.
        """
        self._total_length += length
        if not self.supports_fast:
            return False
        if length >= _MIN_LENGTH_TO_COMPILE:
            return True
        return self._total_length >= _MIN_TOTAL_LENGTH_TO_LOAD and all(
            library.is_compiled() for library in (fast_text.library, fast_encoding.library)
        )

    def _fast_encode(self, text: str, allow_special: bool, num_threads: int) -> np.ndarray:
        with reject_surrogates():
            return self.fast_encoder.encode_text(text, allow_special, num_threads)

    def plain_encode(self, chunks: Iterable[str], allow_special: bool) -> Iterator[int]:
        return self._plain_encoder.encode(
            chunks, self._pre_tokenizer if allow_special else self._ordinary_pre_tokenizer
        )


def _to_blocks(texts: Iterable[str]) -> Iterator[bytes]:
    """Encode texts as UTF-8 and join short ones."""
    pending: list[str] = []
    length = 0
    for text in texts:
        pending.append(text)
        length += len(text)
        if length >= _SLICE_LENGTH:
            yield to_utf8("".join(pending))
            pending, length = [], 0
    yield to_utf8("".join(pending))
