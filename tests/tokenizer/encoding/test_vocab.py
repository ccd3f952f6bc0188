import pytest

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import build_vocab, invert_vocab, number_symbols, pair_symbols
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"


def test_the_vocabulary_is_in_the_order_of_gpt2() -> None:
    vocab = build_vocab([(b"h", b"e"), (b"t", b"he")], [END, "<|pad|>"])
    assert list(vocab) == list(range(260))
    assert (vocab[0], vocab[220], vocab[255]) == (b"!", b" ", b"\xad")
    assert [vocab[token_id] for token_id in range(256, 260)] == [b"he", b"the", END.encode(), b"<|pad|>"]
    assert {vocab[token_id] for token_id in range(256)} == {bytes([byte]) for byte in range(256)}


def test_symbols_are_numbered_by_hand() -> None:
    merges = [(b"h", b"e"), (b"t", b"he")]
    # In this vocabulary, the ids are not in the order of the merges.
    vocab = {0: b"the", 1: b"he"} | {2 + byte: bytes([byte]) for byte in range(256)}
    symbol_ids, pairs = number_symbols(merges, invert_vocab(vocab))
    assert pair_symbols(pairs) == {(ord("h"), ord("e")): 256, (ord("t"), 256): 257}
    assert list(symbol_ids) == [*range(2, 258), 1, 0]


def without(vocab: dict[int, bytes], token_id: int) -> dict[int, bytes]:
    return {key: token for key, token in vocab.items() if key != token_id}


BYTES = build_vocab([], [])


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (without(BYTES, 7), [], "expected the ids 0 to 254, but 7 is missing"),
        (without(BYTES, 255), [], "the byte 0xad has no token"),
        (BYTES | {256: b"a"}, [], "the token b'a' appears twice, with the ids 64 and 256"),
        (BYTES, [(b"a", b"b")], r"merge 1 \(b'a', b'b'\): b'ab' is not in the vocabulary"),
        (BYTES | {256: b"abc"}, [(b"ab", b"c")], r"merge 1 \(b'ab', b'c'\): no merge makes b'ab'"),
        (
            BYTES | {256: b"ab"},
            [(b"a", b"b"), (b"a", b"b")],
            r"merge 2 \(b'a', b'b'\): this merge appears twice",
        ),
    ],
)
def test_an_inconsistent_tokenizer_is_rejected(
    vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer(vocab, merges)
