"""Files in the styles of published models, made by the library tokenizers, give the ids of the library."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
BEGIN = "<|begin_of_text|>"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TEXTS = st.text() | st.lists(
    st.sampled_from(
        [END, BEGIN, "<tool>", "the", " ", "  ", "\n", "'s", "'LL", "12345", "٣½", "é", "ke", "本", "a1", "!"]
    )
).map("".join)


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(PATTERNS.get(pattern, pattern)), behavior=behavior, invert=invert)
    return pre_tokenizers.Sequence([cut, BYTES])


# The pre-tokenizers of published models, and settings of their BPE.
STYLES: dict[str, tuple[pre_tokenizers.PreTokenizer, dict[str, Any]]] = {
    "GPT-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), {}),
    "Llama 3": (split("llama3"), {"ignore_merges": True}),
    "Qwen2": (split("qwen2"), {}),
    "SmolLM": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        {},
    ),
    "runs of digits": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        {},
    ),
    "GPT-4o": (split("gpt4o", "removed", invert=True), {}),
    "another pattern": (split(r" ?\p{L}+|\p{N}{1,4}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s"), {}),
}


@pytest.fixture(scope="module", params=STYLES)
def theirs(request: pytest.FixtureRequest, text: str) -> tokenizers.Tokenizer:
    """A tokenizer of the library in the style of a published model."""
    pre_tokenizer, settings = STYLES[request.param]
    tokenizer = tokenizers.Tokenizer(models.BPE(**settings))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("the", normalized=True)])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]),
        ]
    )
    return tokenizer


@pytest.fixture(scope="module")
def ours(theirs: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return read(theirs, tmp_path_factory.mktemp("saved") / "tokenizer.json")


def read(theirs: tokenizers.Tokenizer, path: Path) -> Tokenizer:
    theirs.save(str(path))
    return Tokenizer.from_hugging_face(path)


def ids_of(theirs: tokenizers.Tokenizer, text: str) -> list[int]:
    return theirs.encode(text, add_special_tokens=False).ids


@given(texts=TEXTS)
def test_ids_of_any_text(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: str) -> None:
    assert ours.encode(texts) == ids_of(theirs, texts)


@pytest.mark.usefixtures("kernels")
def test_ids_of_a_long_text(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str, monkeypatch) -> None:
    monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", 0)
    assert ours._codec.supports_fast
    long = text + "ba" * 3000 + " " * 3000 + "\n" * 3000 + "1" * 100 + " 1 a  1\n 1<tool>the\t1"
    assert ours.encode(long) == ids_of(theirs, long)


def test_the_advice_for_a_wrong_path_is_about_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such file; choose a tokenizer\.json that the library tokenizers"):
        Tokenizer.from_hugging_face(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="expected a file, got a folder"):
        Tokenizer.from_hugging_face(tmp_path)


def test_real_texts(ours: Tokenizer, theirs: tokenizers.Tokenizer, shared_data: Path) -> None:
    for path in sorted(shared_data.glob("*.txt")):
        part = path.read_bytes()[:30_000].decode(errors="ignore")
        assert ours.encode(part) == ids_of(theirs, part), path.name


def test_a_saved_tokenizer_is_the_same(ours: Tokenizer, tmp_path: Path) -> None:
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).hash == ours.hash


@pytest.mark.parametrize("as_pairs", [False, True])
def test_merges_are_strings_or_pairs(theirs: tokenizers.Tokenizer, tmp_path: Path, as_pairs: bool) -> None:
    content = json.loads(theirs.to_str())
    pairs = content["model"]["merges"]
    content["model"]["merges"] = pairs if as_pairs else [" ".join(pair) for pair in pairs]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_hugging_face(tmp_path / "tokenizer.json").encode("bake tho") == ids_of(theirs, "bake tho")


Build = Callable[[list[tuple[str, str]], bool], tuple[Tokenizer, tokenizers.Tokenizer]]


@pytest.fixture
def with_merges(tmp_path: Path) -> Build:
    """Return a function that builds the tokenizer with some merges, ours and the library's."""

    def build(merges: list[tuple[str, str]], ignore_merges: bool) -> tuple[Tokenizer, tokenizers.Tokenizer]:
        tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(left + right for left, right in merges)]
        vocab = {token: number for number, token in enumerate(tokens)}
        theirs = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return read(theirs, tmp_path / "tokenizer.json"), theirs

    return build


def all_splits(tokens: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """Return all merges of tokens to other tokens, as in the files of Llama 3: those that make a token are together."""
    known = {"a", "b", "c", *tokens}
    merges = []
    for token in tokens:
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        ways = [(left, right) for left, right in ways if left in known and right in known]
        rng.shuffle(ways)
        merges += ways
    return merges


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("order", ["by length", "any order", "not together"])
@pytest.mark.parametrize("seed", range(40))
def test_several_merges_may_make_the_same_token(with_merges: Build, monkeypatch, seed: int, order: str) -> None:
    rng = random.Random(seed)
    letters = "ab" if seed % 2 else "abc"
    tokens = ["".join(rng.choices(letters, k=2)) for _ in range(4)]
    for _ in range(12):  # each token is made of two others
        tokens.append(rng.choice(tokens + list(letters)) + rng.choice(tokens + list(letters)))
    tokens = list(dict.fromkeys(token for token in tokens if len(token) <= 12))
    if order == "by length":
        tokens.sort(key=len)
    else:
        rng.shuffle(tokens)
    merges = all_splits(tokens, rng)
    if order == "not together":
        rng.shuffle(merges)
    ours, theirs = with_merges(merges, False)
    texts = ["".join(rng.choices(letters, k=rng.randint(1, 100))) for _ in range(300)]
    expected = [ids_of(theirs, text) for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", 0)
    assert [ours.encode(text) for text in texts] == expected, "with kernels"


def test_the_order_of_overlapping_merges_matters_by_hand(with_merges: Build) -> None:
    for merges in itertools.permutations([("a", "a"), ("a", "aa"), ("aa", "a"), ("aa", "aa")]):
        ours, theirs = with_merges(list(merges), False)
        for length in range(1, 30):
            assert ours.encode("a" * length) == ids_of(theirs, "a" * length), merges


@pytest.mark.usefixtures("kernels")
def test_ignored_merges(with_merges: Build, monkeypatch) -> None:
    # The merges make `abc` of `ab` and `c`, but in the text `abc`, `bc` comes first.
    ours, theirs = with_merges([("b", "c"), ("a", "b"), ("ab", "c")], True)
    assert ours.token_without_merges == b"abc"
    for min_length in (1 << 20, 0):
        monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", min_length)
        for text in ("abc", " abc", "abcabc", "ab bc abc", " abc" * 100):
            assert ours.encode(text) == ids_of(theirs, text)
        assert len(ours.encode("abc")) == 1


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("seed", range(20))
def test_whole_tokens_of_any_length(tmp_path: Path, monkeypatch, seed: int) -> None:
    rng = random.Random(seed)
    # Keys of up to 15 bytes, longer ones, and pre-tokens that are not cached; `a` and `é` have one byte and two.
    letters = ["a", "b", "é"]
    words = {
        "".join(rng.choices(letters, k=rng.choice([2, 3, 7, 8, 14, 15, 16, 30, 61, 62, 63, 200]))) for _ in range(60)
    }
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [encoded.pre_tokenize_str(word)[0][0] for word in sorted(words)]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(token for token in tokens if len(token) > 1)]
    theirs = tokenizers.Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, [], ignore_merges=True))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = read(theirs, tmp_path / "tokenizer.json")
    monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", 0)
    chosen = rng.choices([*sorted(words), "".join(rng.choices(letters, k=70)), "ab", "!"], k=300)
    text = "".join(word + rng.choice([" ", ".", "\n"]) for word in chosen)
    for _ in range(2):  # learned and found again
        assert ours.encode(text) == ids_of(theirs, text)
    assert list(ours._codec.plain_encode([text], allow_special=True)) == ids_of(theirs, text)


def test_an_empty_token_is_no_pre_token(monkeypatch) -> None:
    vocab = build_vocab([], []) | {256: b"", 257: b"ab"}
    monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", 0)
    assert Tokenizer(vocab, [], [], ignore_merges=True).encode("ab") == [257]


@settings(max_examples=200)
@given(text=st.text(st.sampled_from("ab<>|"), max_size=30))
def test_added_tokens_that_overlap(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    theirs = tokenizers.Tokenizer(
        models.BPE({token: n for n, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.add_tokens([AddedToken(token, normalized=False) for token in ("<a>", "<a>b", "ab", ">b<", "aab")])
    ours = read(theirs, tmp_path_factory.mktemp("saved") / "tokenizer.json")
    assert ours.encode(text) == ids_of(theirs, text)


def test_tokens_that_the_library_looks_for_one_after_the_other_are_refused(tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(
        models.BPE({token: n for n, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.add_tokens([AddedToken("bc", normalized=False), AddedToken("ab", normalized=True)])
    assert theirs.encode("abc").tokens == ["a", "bc"]
    with pytest.raises(UserError, match="does not support: the overlap of the added tokens 'ab' and 'bc'"):
        read(theirs, tmp_path / "tokenizer.json")
