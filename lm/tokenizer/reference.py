r"""Byte-level BPE, defined by the plainest code that computes it. Tests compare the real implementations with this one.

BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) starts with single bytes, as in GPT-2 (Radford et al.
2019), and repeatedly merges the most frequent pair of neighboring tokens into a new token. Text is first split into
pre-tokens, roughly words with the space before them, and no merge crosses a split:

    >>> text = "low low lower<|endoftext|>lowest"
    >>> pre_tokenize(text, ["<|endoftext|>"])
    ['low', ' low', ' lower', '<|endoftext|>', 'lowest']

In these pre-tokens, (l, o) and (o, w) occur 4 times each. The lexicographically greater pair, (o, w), is merged first;
then (l, ow) is the most frequent pair. After that, (" ", "low") and ("low", "e") occur twice each, and ("low", "e") is
greater:

    >>> vocab, merges = train(text, 256 + 3 + 1, ["<|endoftext|>"])
    >>> merges
    [(b'o', b'w'), (b'l', b'ow'), (b'low', b'e')]
    >>> [vocab[token_id] for token_id in (0, 255, 256, 257, 258, 259)]
    [b'!', b'\xad', b'ow', b'low', b'lowe', b'<|endoftext|>']

Encoding applies the merges in the same order to each pre-token; decoding concatenates the bytes of the tokens:

    >>> encode("lowly<|endoftext|>", vocab, merges, ["<|endoftext|>"])
    [257, 75, 88, 259]
    >>> decode([257, 75, 88, 259], vocab)
    'lowly<|endoftext|>'
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import regex

from lm.tokenizer.text.byte_alphabet import BYTES_IN_ORDER
from lm.tokenizer.text.categories import findall
from lm.tokenizer.text.patterns import PATTERNS

Pair = tuple[bytes, bytes]


def pre_tokenize(text: str, special_tokens: Sequence[str] = (), pattern: str = PATTERNS["gpt2"]) -> list[str]:
    """Split text into pre-tokens and special tokens; where special tokens overlap, the first and longest one wins."""
    compiled = regex.compile(pattern)
    if not special_tokens:
        return findall(compiled, text)
    longest_first = sorted(special_tokens, key=len, reverse=True)
    pieces: list[str] = []
    for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
        pieces += [part] if part in special_tokens else findall(compiled, part)
    return pieces


def train(
    text: str, vocab_size: int, special_tokens: Sequence[str] = (), pattern: str = PATTERNS["gpt2"]
) -> tuple[dict[int, bytes], list[Pair]]:
    """Return the vocabulary and the merges; the vocabulary is smaller than `vocab_size` if no pairs are left."""
    pieces = pre_tokenize(text, special_tokens, pattern)
    counts = Counter(piece for piece in pieces if piece not in special_tokens)
    merges = learn_merges(counts, vocab_size - 256 - len(special_tokens))
    tokens = [bytes([byte]) for byte in BYTES_IN_ORDER]
    tokens += [left + right for left, right in merges]
    tokens += [token.encode() for token in special_tokens]
    return dict(enumerate(tokens)), merges


def learn_merges(counts: Mapping[str, int], num_merges: int) -> list[Pair]:
    """Return at most `num_merges` merges for pre-tokens that occur `counts` times."""
    words = {word: split_bytes(word) for word in counts}
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pair_counts: Counter[Pair] = Counter()
        for word, tokens in words.items():
            for pair in pairwise(tokens):
                pair_counts[pair] += counts[word]
        if not pair_counts:
            break
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        merges.append(best)
        words = {word: merge(tokens, best) for word, tokens in words.items()}
    return merges


def split_bytes(text: str) -> list[bytes]:
    """Return the UTF-8 bytes of text, each as a token."""
    return [bytes([byte]) for byte in text.encode()]


def merge(tokens: list[bytes], pair: Pair) -> list[bytes]:
    """Replace each occurrence of `pair` by one token, from left to right."""
    merged: list[bytes] = []
    position = 0
    while position < len(tokens):
        if tuple(tokens[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(tokens[position])
            position += 1
    return merged


def encode(
    text: str,
    vocab: Mapping[int, bytes],
    merges: Sequence[Pair],
    special_tokens: Sequence[str] = (),
    pattern: str = PATTERNS["gpt2"],
) -> list[int]:
    """Return the token ids of text."""
    token_ids = {token: token_id for token_id, token in vocab.items()}
    ids: list[int] = []
    for piece in pre_tokenize(text, special_tokens, pattern):
        tokens = [piece.encode()] if piece in special_tokens else split_bytes(piece)
        for pair in merges:
            tokens = merge(tokens, pair)
        ids += [token_ids[token] for token in tokens]
    return ids


def decode(ids: Iterable[int], vocab: Mapping[int, bytes]) -> str:
    """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(vocab[token_id] for token_id in ids).decode(errors="replace")
