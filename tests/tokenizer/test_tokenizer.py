import itertools
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.counting import count_pre_tokens
from lm.tokenizer.training.merges import learn_merges

END = "<|endoftext|>"

CHARACTERS = st.characters(exclude_categories=["Cs"])
# Letters and marks that Unicode assigned after the version of tiktoken.
NEWER = st.sampled_from("\u0558\u088f\u1acf\u2e60\U00010940\U0001fa54\U000323b0\U0003d000")
TEXTS = st.text(CHARACTERS | NEWER | st.sampled_from(" \n'sbak")) | st.lists(
    st.sampled_from([END, "<|endof", "text|>", " ba", "ke", "'s", "\n", "🙂", "本"])
).map("".join)


def make_tokenizer(*merges: tuple[bytes, bytes], special_tokens: tuple[str, ...] = ()) -> Tokenizer:
    return Tokenizer(build_vocab(list(merges), special_tokens), list(merges), special_tokens)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS)
def test_ids_are_those_of_tiktoken(trained, as_tiktoken, pattern: str, text: str) -> None:
    ours, theirs = trained(pattern), as_tiktoken(trained(pattern))
    assert ours.encode(text) == theirs.encode(text, allowed_special="all")
    assert ours.encode(text, allow_special=False) == theirs.encode_ordinary(text)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_of_a_corpus_are_those_of_tiktoken(trained, as_tiktoken, text: str, pattern: str) -> None:
    long_runs = text + "ba" * 3000 + " " * 3000 + "\n" * 3000 + "thoke" * 3000
    ids = trained(pattern).encode(long_runs)
    assert ids == as_tiktoken(trained(pattern)).encode(long_runs, allowed_special="all")
    assert trained(pattern).decode(ids) == long_runs
    assert len(set(ids)) > 600, "the text should use most of the merges"


@given(ids=st.lists(st.integers(0, 956)))
def test_any_ids_decode_as_in_tiktoken(tokenizer: Tokenizer, as_tiktoken, ids: list[int]) -> None:
    assert tokenizer.vocab_size == 957
    assert tokenizer.decode(ids) == as_tiktoken(tokenizer).decode(ids)
    assert tokenizer.decode_bytes(ids) == as_tiktoken(tokenizer).decode_bytes(ids)


@given(text=st.text(), pattern=st.sampled_from(["gpt2", "gpt4", r"\w", r"[a-z]+|\s*", r"(.)\1"]))
def test_any_text_round_trips_with_any_pattern(text: str, pattern: str) -> None:
    merges = learn_merges(count_pre_tokens([text], PreTokenizer(pattern)), 20)
    tokenizer = Tokenizer(build_vocab(merges, []), merges, [], pattern)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_are_applied_in_order_by_hand() -> None:
    tokenizer = make_tokenizer((b"b", b"c"), (b"a", b"b"), (b"bc", b"d"), special_tokens=(END,))
    a, b, c, d = (tokenizer.encode(letter)[0] for letter in "abcd")
    assert tokenizer.encode("abcd") == [a, 258]
    assert tokenizer.encode("abab") == [257, 257]
    assert tokenizer.encode("cbad") == [c, b, a, d]
    assert tokenizer.encode("bcbc") == [256, 256]
    assert make_tokenizer((b"a", b"a")).encode("aaaaa") == [256, 256, a]


def test_special_tokens_by_hand() -> None:
    tokenizer = make_tokenizer(special_tokens=(END, END + END, "<|"))
    assert tokenizer.encode(END) == [256] and tokenizer.end_of_text_id == 256
    assert tokenizer.encode(END * 3) == [257, 256]
    assert tokenizer.encode("<|endof") == [258, *tokenizer.encode("endof")]
    assert len(tokenizer.encode(END, allow_special=False)) == len(END)
    assert tokenizer.decode([257, 256]) == END * 3
    assert list(tokenizer.encode_iterable(list(END * 3))) == [257, 256]


def test_a_special_token_in_the_vocabulary_keeps_its_id() -> None:
    vocab = {0: END.encode()} | {token_id + 1: token for token_id, token in build_vocab([], []).items()}
    tokenizer = Tokenizer(vocab, [], [END, "<|new|>"])
    assert tokenizer.encode(f"!{END}<|new|>") == [1, 0, 257]
    assert tokenizer.vocab_size == 258


def test_the_error_without_an_end_of_text_token() -> None:
    with pytest.raises(UserError, match=r"no special token '<\|endoftext\|>'"):
        _ = make_tokenizer().end_of_text_id


@given(text=TEXTS, size=st.integers(1, 20))
def test_encode_iterable_equals_encode_of_the_concatenated_chunks(tokenizer: Tokenizer, text: str, size: int) -> None:
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(tokenizer.encode_iterable(chunks)) == tokenizer.encode(text)
    assert list(tokenizer.encode_iterable(chunks, allow_special=False)) == tokenizer.encode(text, allow_special=False)


def test_encode_iterable_reads_only_when_needed(tokenizer: Tokenizer) -> None:
    read = itertools.count()
    ids = tokenizer.encode_iterable(f"line {number}\n" for number in read)
    assert next(read) == 0, "nothing should be read before the first id is requested"
    assert len(list(itertools.islice(ids, 100))) == 100
    assert next(read) < 100


def peak_of_encoding(tokenizer: Tokenizer, chunks: Iterable[str]) -> int:
    """Return the peak memory of encode_iterable with a new tokenizer, in bytes."""
    fresh = Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens, tokenizer.pattern)
    tracemalloc.start()
    for _ in fresh.encode_iterable(chunks):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def different_lines(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"word{number:x} in line {number * 7919} of a text without an end \n"


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the caches so small, and the switch to kernels so early, that short texts reach the full use of memory."""
    monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", 1 << 16)
    monkeypatch.setattr("lm.tokenizer.encoding.fast.cache._LAST_BITS", 17)
    monkeypatch.setattr("lm.tokenizer.encoding.encoder._Cache._MAX_ENTRIES", 1 << 12)


@pytest.mark.usefixtures("kernels", "small_caches")
@pytest.mark.parametrize(("has_kernels", "limit"), [(True, 64_000_000), (False, 8_000_000)])
def test_encode_iterable_takes_constant_memory(trained, monkeypatch, has_kernels: bool, limit: int) -> None:
    monkeypatch.setattr("lm.tokenizer.encoding.codec.can_load", lambda: has_kernels)
    # All lines are different, so memory would grow if they were kept.
    short = peak_of_encoding(trained("gpt4"), different_lines(4_000))
    long = peak_of_encoding(trained("gpt4"), different_lines(10_000))
    assert long < short + 200_000, f"{short:,} bytes for 4,000 lines, {long:,} for 10,000"
    assert long < limit


@pytest.mark.usefixtures("kernels", "small_caches")
@pytest.mark.parametrize(("has_kernels", "limit"), [(True, 48_000_000), (False, 2_000_000)])
def test_a_long_chunk_takes_little_memory_in_addition_to_itself(
    trained, monkeypatch, has_kernels: bool, limit: int
) -> None:
    monkeypatch.setattr("lm.tokenizer.encoding.codec.can_load", lambda: has_kernels)
    line = "some words that repeat\n"
    short = peak_of_encoding(trained("gpt4"), [line * 10_000])
    long = peak_of_encoding(trained("gpt4"), [line * 30_000])
    assert long < short + 300_000, f"{short:,} bytes for 230,000 characters, {long:,} for 690,000"
    assert long < limit


def test_a_hundred_thousand_letters_without_a_space(tokenizer: Tokenizer, text: str) -> None:
    letters = "".join(filter(str.isalpha, text))
    assert tokenizer.decode(tokenizer.encode(letters)) == letters


def test_empty_input(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert list(tokenizer.encode_iterable([])) == []
    assert list(tokenizer.encode_iterable(["", ""])) == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    "broken", ["\ud83d", "before\ude42after", f"{END}\udfff{END}"], ids=["alone", "inside", "between special tokens"]
)
def test_half_of_a_surrogate_pair_is_rejected(tokenizer: Tokenizer, broken: str) -> None:
    with pytest.raises(UserError, match=r"the text contains U\+D[8-F][0-9A-F]{2}, half of a surrogate pair"):
        tokenizer.encode(broken)


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("\u0915")
    assert tokenizer.decode([first]) == "\ufffd"
    assert tokenizer.decode_bytes([first]) == b"\xe0"


@pytest.mark.parametrize("token_id", [957, -1, 10**12])
def test_an_id_out_of_range_is_rejected(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(UserError, match=f"token id: expected 0 to 956, got {token_id}"):
        tokenizer.decode([5, token_id])


def test_the_hash_depends_on_everything_that_determines_ids_and_on_nothing_else() -> None:
    merges = [(b"a", b"b"), (b"c", b"d")]
    vocab = build_vocab(merges, [END])
    swapped = vocab | {256: vocab[257], 257: vocab[256]}
    hashes = [
        Tokenizer(vocab, merges, [END]).hash,
        Tokenizer(swapped, merges, [END]).hash,
        Tokenizer(vocab, merges[::-1], [END]).hash,
        Tokenizer(vocab, merges, []).hash,
        Tokenizer(vocab, merges, [END, "<|x|>"]).hash,
        Tokenizer(vocab, merges, [END], "gpt4").hash,
        Tokenizer(vocab, merges, [END], r"\w+").hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert Tokenizer(dict(reversed(vocab.items())), list(merges), (END,)).hash == hashes[0]


def test_the_hash_notices_another_version_of_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer((b"a", b"b"), special_tokens=(END,))
    # As before the version was recorded: models and token files that were made then stay usable.
    assert tokenizer.hash == "5281efa8d6c5b980251de11099a2f001718bc9081412a362fad8f3764fae5e0a"
    monkeypatch.setattr("lm.tokenizer.tokenizer.UNICODE_VERSION", "17.0.0")
    assert make_tokenizer((b"a", b"b"), special_tokens=(END,)).hash != tokenizer.hash
