from hypothesis import given
from hypothesis import strategies as st

from lm.tokenizer import reference
from lm.tokenizer.encoding.encoder import Encoder
from lm.tokenizer.encoding.vocab import build_vocab, invert_vocab, number_symbols, pair_symbols
from lm.tokenizer.text.pretokenization import PreTokenizer

END = "<|endoftext|>"


@given(
    training_text=st.text(st.sampled_from("abcé "), max_size=80),
    chunks=st.lists(st.text(st.sampled_from("abcé ")) | st.sampled_from([END, "<|end", "oftext|>"]), max_size=6),
)
def test_ids_are_those_of_the_reference(training_text: str, chunks: list[str]) -> None:
    vocab, merges = reference.train(training_text, 300, [END])
    symbol_ids, pairs = number_symbols(merges, invert_vocab(vocab))
    encoder = Encoder(pair_symbols(pairs), symbol_ids, {END: len(vocab) - 1}, {})
    expected = reference.encode("".join(chunks), vocab, merges, [END])
    assert list(encoder.encode(chunks, PreTokenizer("gpt2", [END]))) == expected


def test_merges_are_applied_in_order_by_hand() -> None:
    merges = [(b"b", b"c"), (b"a", b"b"), (b"bc", b"d"), (b"a", b"a")]
    symbol_ids, pairs = number_symbols(merges, invert_vocab(build_vocab(merges, [])))
    encoder = Encoder(pair_symbols(pairs), symbol_ids, {}, {})
    a = 64
    assert list(encoder.encode(["abcd abab aaaaa"], PreTokenizer())) == [a, 258, 220, 257, 257, 220, 259, 259, a]
