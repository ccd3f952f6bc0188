"""The ids are those of tiktoken, for any division of the text, any number of threads, and every method that encodes."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer import reference
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.text.fast import chunks
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
MODULE = "lm.tokenizer.encoding.codec"

# One is a prefix of another, one a suffix, and two overlap partly.
OVERLAPPING = [END, END + END, "<|", "|>ba", "text|><|end", "xx", "ba ke"]

CHARACTERS = st.characters(exclude_categories=["Cs"])
# Letters and marks that Unicode assigned after the version of tiktoken.
NEWER = st.sampled_from("\u0558\u088f\u1acf\u2e60\U00010940\U0001fa54\U000323b0\U0003d000")
PARTS = [END, "<|endof", "text|>", " ba", "ke", "'s", "'LL", "\r\n", "\0", "🙂", "本", "\u3000", "  ", "1", "thokeri"]
TEXTS = st.text(CHARACTERS | NEWER | st.sampled_from(" \n'sbak")) | st.lists(st.sampled_from(PARTS)).map("".join)


@pytest.fixture(autouse=True, scope="module")
def compiled(kernels) -> Iterator[None]:
    """Encode even the shortest texts with kernels, and with as many threads as requested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", 0)
        patch.setattr(chunks, "_LENGTH_PER_THREAD", 1)
        yield


@pytest.fixture(scope="module")
def overlapping(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(build_vocab(tokenizer.merges, OVERLAPPING), tokenizer.merges, OVERLAPPING)


@pytest.fixture(scope="module")
def file_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "text.txt"


def in_pieces_of(size: int) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr(chunks, "_MIN_PIECE_LENGTH", size)
    patch.setattr(chunks, "_MAX_PIECE_LENGTH", size)
    return patch


def ids_of_every_method(
    tokenizer: Tokenizer, text: str, num_threads: int, size: int, path: Path, allow_special: bool = True
) -> dict[str, list[int]]:
    """Return the ids that each public method returns when it works on chunks of about `size`."""
    path.write_bytes(text.encode())
    slices = [text[begin : begin + size] for begin in range(0, len(text), size)]
    patch = in_pieces_of(size)
    try:
        batch = tokenizer.encode_batch(["", text, "ba", text], allow_special, num_threads)
        assert batch[0].tolist() == [] and batch[2].tolist() == tokenizer.encode("ba")
        results = {
            "encode": tokenizer.encode(text, allow_special),
            "encode_array": tokenizer.encode_array(text, allow_special, num_threads).tolist(),
            "encode_batch": batch[1].tolist(),
            "encode_batch again": batch[3].tolist(),
            "encode_iterable": list(tokenizer.encode_iterable(slices, allow_special)),
        }
        if allow_special:
            results["encode_file"] = np.concatenate([[], *tokenizer.encode_file(path, num_threads)]).tolist()
        return results
    finally:
        patch.undo()


@settings(max_examples=100)
@given(text=TEXTS, num_threads=st.sampled_from([1, 2, 3, 5]), size=st.integers(1, 100))
def test_every_method_with_any_threads_and_chunks_returns_the_ids_of_tiktoken(
    tokenizer: Tokenizer, as_tiktoken, file_path: Path, text: str, num_threads: int, size: int
) -> None:
    theirs = as_tiktoken(tokenizer)
    expected = theirs.encode(text, allowed_special="all")
    for method, ids in ids_of_every_method(tokenizer, text, num_threads, size, file_path).items():
        assert ids == expected, method
    expected = theirs.encode_ordinary(text)
    for method, ids in ids_of_every_method(tokenizer, text, num_threads, size, file_path, allow_special=False).items():
        assert ids == expected, method
    assert tokenizer.decode(tokenizer.encode_array(text)) == text


@settings(max_examples=300)
@given(text=TEXTS)
def test_ids_with_gpt2s_merges_are_those_of_tiktoken(gpt2: Tokenizer, as_gpt2: tiktoken.Encoding, text: str) -> None:
    assert gpt2.encode(text) == as_gpt2.encode(text, allowed_special="all")


@settings(max_examples=100)
@given(
    text=st.lists(st.sampled_from([*OVERLAPPING, *PARTS, ">", "<", "|"]), max_size=30).map("".join),
    num_threads=st.sampled_from([1, 2, 3]),
    size=st.integers(1, 60),
)
def test_overlapping_special_tokens_between_any_chunks(
    overlapping: Tokenizer, as_tiktoken, file_path: Path, text: str, num_threads: int, size: int
) -> None:
    # tiktoken takes any of the special tokens that match at a position, so it only encodes the text between them.
    theirs = as_tiktoken(overlapping)
    expected = []
    for part in reference.pre_tokenize(text, OVERLAPPING):
        expected += [theirs.encode_single_token(part)] if part in OVERLAPPING else theirs.encode_ordinary(part)
    for method, ids in ids_of_every_method(overlapping, text, num_threads, size, file_path).items():
        assert ids == expected, method
    ordinary = theirs.encode_ordinary(text)
    for method, ids in ids_of_every_method(
        overlapping, text, num_threads, size, file_path, allow_special=False
    ).items():
        assert ids == ordinary, method


@pytest.fixture(scope="module")
def as_gpt2(gpt2: Tokenizer, as_tiktoken) -> tiktoken.Encoding:
    return as_tiktoken(gpt2)


@pytest.fixture(scope="module")
def corpus(text: str) -> str:
    """Some 500,000 characters, with runs of every kind."""
    runs = ["ba" * 3000, " " * 3000, "\n" * 3000, "thoke" * 3000, "\r\n" * 3000, "'s" * 2000, "'LL" * 999, "\0" * 999]
    return (text + text.join(runs))[: 2 * len(text)] + text.swapcase() + "".join(runs) * 5 + text


def test_a_generated_text_with_any_threads_and_chunks(
    tokenizer: Tokenizer, as_tiktoken, corpus: str, file_path: Path
) -> None:
    expected = as_tiktoken(tokenizer).encode(corpus, allowed_special="all")
    assert len(corpus) > 1 << 18 and len(set(expected)) > 600, "the text should use most of the merges"
    for num_threads, size in ((1, 1 << 18), (2, 50_000), (5, 1000)):
        for method, ids in ids_of_every_method(tokenizer, corpus, num_threads, size, file_path).items():
            assert ids == expected, (method, num_threads, size)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_many_texts_of_all_sizes(tokenizer: Tokenizer, as_tiktoken, corpus: str, num_threads: int) -> None:
    rng = random.Random(num_threads)
    cuts = [0, *sorted(rng.choices(range(len(corpus)), k=1000)), len(corpus)]
    texts = ["", corpus, *(corpus[begin:end] for begin, end in itertools.pairwise(cuts)), "", corpus[:300_000]]
    theirs = as_tiktoken(tokenizer)
    expected = [theirs.encode(text, allowed_special="all") for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts, num_threads=num_threads)] == expected
    assert tokenizer.encode_batch([]) == []


def test_the_state_of_the_cache_does_not_affect_the_ids(tokenizer: Tokenizer, as_tiktoken) -> None:
    # More distinct pre-tokens, short and long, than the cache ever holds, encoded twice.
    words = [f" {number:x}{'z' * (number % 60)}" if number % 7 == 0 else f" {number:x}é" for number in range(300_000)]
    text = "".join(words)
    theirs = as_tiktoken(tokenizer)
    expected = np.array(theirs.encode_ordinary(text), np.uint16)
    for _ in range(2):
        assert np.array_equal(tokenizer.encode_array(text), expected)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 61, 62, 63, 64, 65, 127, 500])
def test_pre_tokens_of_every_length(tokenizer: Tokenizer, as_tiktoken, length: int) -> None:
    rng = random.Random(length)
    words = ["".join(rng.choices("bakerithoun", k=length)) for _ in range(50)]
    # These differ in the last, the first, or the middle letter.
    words += ["b" * (length - 1) + "k", "k" + "b" * (length - 1), "b" * (length // 2) + "k" + "b" * (length // 2)]
    text = " ".join(words + words) + "é" * length + "." * length + "7" * length
    assert tokenizer.encode(text) == as_tiktoken(tokenizer).encode_ordinary(text)


@pytest.mark.parametrize("unit", [" ", "a", "ba", "1", ".", "\n", "é", "語", "\u3000", "thoke", "'"])
def test_long_runs(tokenizer: Tokenizer, plain: Callable[[str], list[int]], unit: str) -> None:
    run = unit * (40_000 // len(unit))
    for text in (run, f"x{run}y", f" {run} ba"):
        assert tokenizer.encode(text) == plain(text)


@pytest.fixture(scope="module")
def plain(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return a function that encodes in plain Python; tiktoken takes quadratic time for long pre-tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{MODULE}.can_load", lambda: False)
        other = Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
        other.encode("x")  # checks for kernels only the first time
    return other.encode


def test_a_long_pre_token(tokenizer: Tokenizer, plain: Callable[[str], list[int]], text: str) -> None:
    letters = ("".join(filter(str.isalpha, text)) * 20)[:200_000]
    ids = tokenizer.encode(letters)
    assert ids == plain(letters)
    assert tokenizer.decode(ids) == letters


def test_real_texts_with_the_merges_of_gpt2(
    gpt2: Tokenizer, as_gpt2: tiktoken.Encoding, shared_data: Path, file_path: Path
) -> None:
    for path in sorted(shared_data.glob("*.txt")):
        text = path.read_bytes()[:600_000].decode(errors="ignore")
        file_path.write_bytes(text.encode())
        expected = as_gpt2.encode_to_numpy(text, allowed_special="all")
        assert np.array_equal(gpt2.encode_array(text), expected), path.name
        assert np.array_equal(np.concatenate(list(gpt2.encode_file(file_path))), expected), path.name
        assert gpt2.decode_bytes(expected) == text.encode(), path.name


@pytest.mark.parametrize("size", [1, 20, 3000])
def test_encode_iterable_switches_to_kernels_anywhere(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, overlapping: Tokenizer, as_tiktoken, text: str, size: int
) -> None:
    part = text[:10_000]
    slices = [part[begin : begin + size] for begin in range(0, len(part), size)]
    theirs = as_tiktoken(tokenizer)
    expected = theirs.encode(part, allowed_special="all")
    expected_ordinary = theirs.encode_ordinary(part)
    expected_overlapping = overlapping.encode(part)
    for length in (1, 500, 4777, 9_999):
        monkeypatch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", length)
        assert list(tokenizer.encode_iterable(slices)) == expected
        assert list(tokenizer.encode_iterable(slices, allow_special=False)) == expected_ordinary
        assert list(overlapping.encode_iterable(slices)) == expected_overlapping


def test_encode_iterable_reads_64_kb_ahead_at_most(tokenizer: Tokenizer, text: str) -> None:
    part = "".join(character for character in text if ord(character) < 128)[:60_000]
    num_read = num_yielded = max_ahead = 0

    def chunks_of_100() -> Iterator[str]:
        nonlocal num_read
        for begin in itertools.cycle(range(0, len(part), 100)):
            num_read += len(part[begin : begin + 100])
            yield part[begin : begin + 100]

    for token in itertools.islice(tokenizer.encode_iterable(chunks_of_100()), 200_000):
        max_ahead = max(max_ahead, num_read - num_yielded)
        num_yielded += len(tokenizer.vocab[token])
    # While the ids of one block are yielded, another one is waiting to be encoded.
    assert max_ahead < 2 * 65_536 + 1000


def test_encode_iterable_of_single_characters_takes_linear_time(tokenizer: Tokenizer, as_tiktoken, text: str) -> None:
    part = text[:50_000]
    expected = as_tiktoken(tokenizer).encode("ba ke. " + part, allowed_special="all")
    assert list(tokenizer.encode_iterable(["ba ke. ", *part])) == expected


def test_the_dtype_depends_on_the_size_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_array("ba ke").dtype == np.dtype("<u2")
    # Every pair of bytes is merged; the last merge has the id 65,791.
    merges = [(bytes([left]), bytes([right])) for left in reversed(range(256)) for right in reversed(range(256))]
    large = Tokenizer(build_vocab(merges, []), merges)
    assert large.encode_array("\0\0").tolist() == [65_791]
    assert large.encode_array("\0\0").dtype == np.dtype("<u4")


def test_zero_threads_are_rejected(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for encode in (
        lambda: tokenizer.encode_array("a", num_threads=0),
        lambda: tokenizer.encode_batch(["a"], num_threads=0),
        lambda: list(tokenizer.encode_file(tmp_path / "none.txt", num_threads=0)),
    ):
        with pytest.raises(UserError, match="num_threads: expected 1 or more, got 0"):
            encode()


@pytest.mark.parametrize("min_length", [0, 1 << 60], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    ("broken", "half"),
    [
        ("\ud83d", "D83D"),
        ("before\ude42after", "DE42"),
        (f"{END}\udfff{END}", "DFFF"),
        ("ba ke " * 20_000 + "\ud800", "D800"),
        ("ba ke \ud801 ke" + " ba \ud802" * 20_000, "D801"),
    ],
    ids=["alone", "inside", "between special tokens", "in a later chunk", "the first of many"],
)
def test_every_method_rejects_half_of_a_surrogate_pair(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, broken: str, half: str, min_length: int
) -> None:
    monkeypatch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", min_length)
    monkeypatch.setattr(f"{MODULE}._MIN_TOTAL_LENGTH_TO_LOAD", min_length)
    message = rf"^the text contains U\+{half}, half of a surrogate pair, which is not a character$"
    for encode in (
        lambda: tokenizer.encode(broken),
        lambda: tokenizer.encode_array(broken, num_threads=1),
        lambda: tokenizer.encode_array(broken, num_threads=3),
        lambda: tokenizer.encode_batch(["ba", broken], num_threads=2),
        lambda: list(tokenizer.encode_iterable(["ba ", broken[: len(broken) // 2], broken[len(broken) // 2 :]])),
    ):
        with pytest.raises(UserError, match=message):
            encode()
    assert tokenizer.encode("ba") == tokenizer.encode_array("ba").tolist(), "the tokenizer should still work"


@pytest.mark.parametrize("min_length", [0, 1 << 60], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    ("data", "offset"),
    [(b"\xff", "0"), (b"ba ke\n" * 20_000 + b"\xe4\xb8", "120,000"), (b"ba \xed\xa0\x80" + b"ba " * 9, "3")],
    ids=["alone", "incomplete at the end", "half of a surrogate pair"],
)
def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Tokenizer,
    tmp_path: Path,
    data: bytes,
    offset: str,
    min_length: int,
) -> None:
    monkeypatch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", min_length)
    monkeypatch.setattr(f"{MODULE}._MIN_TOTAL_LENGTH_TO_LOAD", min_length)
    (tmp_path / "text.txt").write_bytes(data)
    for num_threads in (1, 3):
        with pytest.raises(UserError, match=rf"text\.txt: not UTF-8 at byte {offset}; convert the file to UTF-8$"):
            list(tokenizer.encode_file(tmp_path / "text.txt", num_threads))
