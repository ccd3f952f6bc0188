"""The vocabulary that merges make, and the checks that a vocabulary and its merges fit together."""

from array import array
from collections.abc import Sequence
from itertools import count

from lm.errors import UserError, quote
from lm.tokenizer.text.byte_alphabet import BYTES_IN_ORDER

Merges = list[tuple[bytes, bytes]]


def build_vocab(merges: Merges, special_tokens: Sequence[str]) -> dict[int, bytes]:
    """Return the vocabulary in GPT-2's order: the 256 bytes (`!` first), one token per merge, the special tokens."""
    tokens = [bytes([byte]) for byte in BYTES_IN_ORDER]
    tokens += [left + right for left, right in merges]
    tokens += [token.encode() for token in special_tokens]
    return dict(enumerate(tokens))


def invert_vocab(vocab: dict[int, bytes]) -> dict[bytes, int]:
    """Return the id of each token.

    Raises:
        UserError: The ids are not 0, 1, 2, ..., two ids have the same token, or a byte has no token.
    """
    token_ids: dict[bytes, int] = {}
    for expected, token_id in enumerate(sorted(vocab)):
        if token_id != expected:
            raise UserError(f"expected the ids 0 to {len(vocab) - 1}, but {expected} is missing")
        token = vocab[token_id]
        if token in token_ids:
            raise UserError(f"the token {quote(token)} appears twice, with the ids {token_ids[token]} and {token_id}")
        token_ids[token] = token_id
    for byte in range(256):
        if bytes([byte]) not in token_ids:
            raise UserError(f"the byte {byte:#04x} has no token")
    return token_ids


def number_symbols(merges: Merges, token_ids: dict[bytes, int]) -> tuple[array, array]:
    """Number the tokens that merging works on: each byte by its value, and the result of each merge from 256 on.

    These symbols order the merges whatever ids a vocabulary gives to the tokens: of two merges, the one that makes the
    smaller symbol comes first.

    Returns:
        The id of each symbol, and the two symbols of each merge, one merge after the other, as 32-bit numbers.

    Raises:
        UserError: A merge uses a token that no earlier merge makes, or makes a token that an earlier one made or that
            is not in the vocabulary.
    """
    symbols = {bytes([byte]): byte for byte in range(256)}
    pairs = array("I")
    for number, (left, right) in enumerate(merges, start=1):
        for token in (left, right):
            if token not in symbols:
                raise UserError(f"{_name(number, left, right)}: no earlier merge makes {quote(token)}")
        merged = left + right
        if merged in symbols:
            raise UserError(f"{_name(number, left, right)}: an earlier merge makes {quote(merged)} already")
        if merged not in token_ids:
            raise UserError(f"{_name(number, left, right)}: {quote(merged)} is not in the vocabulary")
        pairs.append(symbols[left])
        pairs.append(symbols[right])
        symbols[merged] = len(symbols)
    return array("I", [token_ids[token] for token in symbols]), pairs


def pair_symbols(pairs: array) -> dict[tuple[int, int], int]:
    """Return the symbol that each mergeable pair of symbols makes.

    >>> pair_symbols(array("I", [104, 101, 116, 256]))
    {(104, 101): 256, (116, 256): 257}
    """
    symbols = iter(pairs)
    return dict(zip(zip(symbols, symbols, strict=True), count(256)))


def _name(number: int, left: bytes, right: bytes) -> str:
    return f"merge {number} ({quote(left)}, {quote(right)})"
