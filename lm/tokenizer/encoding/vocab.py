"""The vocabulary that merges make, and the checks that a vocabulary and its merges fit together."""

from array import array
from collections.abc import Collection, Mapping, Sequence
from itertools import product

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


def number_symbols(merges: Merges, token_ids: Mapping[bytes, int]) -> tuple[array, array]:
    """Number the tokens that merging works on: each byte by its value, and the result of each merge from 256 on.

    These symbols order the merges whatever ids a vocabulary gives to the tokens: of two merges, the one that makes the
    smaller symbol comes first.

    In files of other programs, several merges may make the same token, and a merge may come before one that makes a
    part of it. Then a token has several symbols, all with its id, and each of them is merged like the others:

        >>> symbol_ids, pairs = number_symbols([(b"a", b"b"), (b"ab", b"c"), (b"b", b"c"), (b"a", b"bc")],
        ...     {bytes([byte]): byte for byte in range(256)} | {b"ab": 300, b"abc": 301, b"bc": 302})
        >>> symbol_ids[256:], pairs
        (array('I', [300, 301, 302, 301]), array('I', [97, 98, 256, 256, 99, 257, 98, 99, 258, 97, 258, 259]))

    Returns:
        The id of each symbol, and the two symbols of each pair that can be merged and the symbol that it makes, one
        pair after the other, as 32-bit numbers.

    Raises:
        UserError: A merge appears twice, uses a token that no merge makes, or makes one that is not in the vocabulary.
    """
    lefts, rights = [left for left, _ in merges], [right for _, right in merges]
    results = [left + right for left, right in merges]
    _require_known(merges, results, token_ids, "{} is not in the vocabulary")
    is_simple = len({*results}) == len(results)  # as in every file that one of our tokenizers wrote
    made = list(range(256, 256 + len(merges))) if is_simple else _number_results(merges)
    tokens = {byte: bytes([byte]) for byte in range(256)} | dict(zip(made, results, strict=True))  # of the symbols
    symbols = {token: symbol for symbol, token in tokens.items()}  # of a token, the last one
    _require_known(merges, lefts, symbols, "no merge makes {}")
    _require_known(merges, rights, symbols, "no merge makes {}")
    if is_simple:
        pairs = array("I", bytes(12 * len(merges)))
        pairs[::3] = array("I", map(symbols.__getitem__, lefts))
        pairs[1::3] = array("I", map(symbols.__getitem__, rights))
        pairs[2::3] = array("I", made)
    else:
        pairs = _all_pairs(merges, made, tokens)
    return array("I", map(token_ids.__getitem__, tokens.values())), pairs


def _all_pairs(merges: Merges, made: list[int], tokens: Mapping[int, bytes]) -> array:
    """Return the pairs that can be merged, where tokens may have several symbols."""
    symbols: dict[bytes, list[int]] = {}
    for symbol, token in tokens.items():
        symbols.setdefault(token, []).append(symbol)
    pairs = array("I")
    for (left, right), symbol in zip(merges, made, strict=True):
        for left_symbol, right_symbol in product(symbols[left], symbols[right]):
            pairs.extend((left_symbol, right_symbol, symbol))
    return pairs


def _require_known(merges: Merges, tokens: list[bytes], known: Collection[bytes], message: str) -> None:
    """Check that the token of each merge is a known one."""
    for number, token in enumerate(tokens):
        if token not in known:
            raise UserError(f"{_name(number, *merges[number])}: {message.format(quote(token))}")


def _number_results(merges: Merges) -> list[int]:
    """Return the symbol that each merge makes, where some of them make the same token.

    Raises:
        UserError: A merge appears twice.
    """
    first_uses: dict[bytes, int] = {}
    for number, pair in enumerate(merges):
        for token in pair:
            first_uses.setdefault(token, number)
    made: list[int] = []
    num_symbols = 256
    run: Merges = []  # the merges before this one that make the same symbol
    seen = set()
    for number, (left, right) in enumerate(merges):
        merged = left + right
        if (left, right) in seen:
            raise UserError(f"{_name(number, left, right)}: this merge appears twice")
        seen.add((left, right))
        # Merges that follow each other can make the same symbol, unless their order matters: where two of them overlap
        # and the second one in the text comes first, or if the token takes part in a merge before the last of them.
        is_same = bool(run) and run[0][0] + run[0][1] == merged
        if not is_same or first_uses.get(merged, number + 1) <= number or any(right == other for other, _ in run):
            num_symbols += 1
            run = []
        run.append((left, right))
        made.append(num_symbols - 1)
    return made


def pair_symbols(pairs: array) -> dict[tuple[int, int], int]:
    """Return the symbol that each mergeable pair of symbols makes.

    >>> pair_symbols(array("I", [104, 101, 256, 116, 256, 257]))
    {(104, 101): 256, (116, 256): 257}
    """
    return dict(zip(zip(pairs[::3], pairs[1::3], strict=True), pairs[2::3], strict=True))


def _name(number: int, left: bytes, right: bytes) -> str:
    return f"merge {number + 1} ({quote(left)}, {quote(right)})"
