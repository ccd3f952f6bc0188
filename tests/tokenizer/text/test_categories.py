"""Characters are classified as in tiktoken and tokenizers, whatever the installed `regex` knows about them."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import regex
import tiktoken
import tokenizers

from lm.tokenizer import reference
from lm.tokenizer.text import alphabet, categories
from lm.tokenizer.text.automaton import compile_automaton, find_obstacle
from lm.tokenizer.text.categories import category_ranges, findall, with_stand_ins
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.tokenizer import Tokenizer

SURROGATES = range(0xD800, 0xE000)
CHARACTERS = [chr(code) for code in range(0x110000) if code not in SURROGATES]
NEWER_LETTER, NEWER_ASTRAL_LETTER = "\u0558", "\U0003d000"  # letters since Unicode 18


def category(character: str) -> str:
    return next(name for begin, end, name in category_ranges() if begin <= ord(character) < end)


def split(text: str, pattern: str) -> list[str]:
    return [token for tokens, _ in PreTokenizer(pattern).stream([text]) for token in tokens]


def test_ranges_by_hand() -> None:
    ranges = category_ranges()
    assert ranges[0][0] == 0 and ranges[-1][1] == 0x110000
    assert all(end == begin for (_, end, _), (begin, _, _) in itertools.pairwise(ranges))
    assert all(first != second for (_, _, first), (_, _, second) in itertools.pairwise(ranges))
    by_hand = {"a": "Ll", "Z": "Lu", "中": "Lo", "7": "Nd", "½": "No", " ": "Zs", "_": "Pc", "\n": "Cc", "\uffff": "Cn"}
    by_hand |= {"\U000105c0": "Lo", NEWER_LETTER: "Cn"}  # new in Unicode 16, and later
    assert {character: category(character) for character in by_hand} == by_hand


@pytest.mark.parametrize("class_", [r"\p{L}", r"\p{Lu}", r"\p{N}", r"\s"])
def test_a_class_matches_the_characters_that_it_matches_in_tokenizers(class_: str) -> None:
    pieces = tokenizers.pre_tokenizers.Split(tokenizers.Regex(f"{class_}+"), behavior="removed", invert=True)
    text = "".join(CHARACTERS)
    theirs = {character for piece, _ in pieces.pre_tokenize_str(text) for character in piece}
    assert set("".join(findall(regex.compile(f"{class_}+"), text))) == theirs
    if class_ != r"\s":
        name = class_[3:-1]
        ranges = [range(begin, end) for begin, end, other in category_ranges() if other.startswith(name)]
        assert set(map(chr, itertools.chain.from_iterable(ranges))) == theirs


# Text with every character, alone and where its class matters: after a contraction, beside letters, digits and spaces.
CONTEXTS = ["{0}", "a{0}'s", " {0}1", "x  {0}{0} ", "'{0}", "\n{0}\n"]


@pytest.fixture(scope="module")
def byte_pairs() -> Callable[[str], tuple[Tokenizer, tiktoken.Encoding]]:
    """Return a function that returns a tokenizer that merges all pairs of bytes, and the same in tiktoken.

    Any difference between two ways to split a text then leads to different ids.
    """
    pairs = [(bytes([left]), bytes([right])) for left in range(256) for right in range(256)]
    vocab = {byte: bytes([byte]) for byte in range(256)}
    vocab |= {256 + number: left + right for number, (left, right) in enumerate(pairs)}
    ranks = {token: token_id for token_id, token in vocab.items()}

    def build(pattern: str) -> tuple[Tokenizer, tiktoken.Encoding]:
        encoding = tiktoken.Encoding("pairs", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
        return Tokenizer(vocab, pairs, [], pattern), encoding

    return build


def in_contexts(characters: list[str], contexts: list[str]) -> str:
    return "\n".join(context.format(character) for context in contexts for character in characters)


def ends_of_ranges_unlike_regex() -> list[str]:
    """Return the first and the last character of each range that the installed `regex` puts in another category."""
    text = "".join(CHARACTERS)
    codes = {ord(ours) for ours, theirs in zip(text, with_stand_ins(text)) if ours != theirs}
    return [chr(code) for code in codes if not {code - 1, code + 1} <= codes]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_of_characters_that_regex_classifies_otherwise(byte_pairs, pattern: str) -> None:
    ours, theirs = byte_pairs(pattern)
    text = in_contexts([NEWER_LETTER, NEWER_ASTRAL_LETTER, *ends_of_ranges_unlike_regex()], CONTEXTS)
    assert ours.encode(text) == theirs.encode_ordinary(text)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_from_kernels(byte_pairs, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr("lm.tokenizer.encoding.codec._MIN_LENGTH_TO_COMPILE", 0)
    test_ids_of_characters_that_regex_classifies_otherwise(byte_pairs, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_of_all_characters_are_those_of_tiktoken(byte_pairs, pattern: str) -> None:
    ours, theirs = byte_pairs(pattern)
    for begin in range(0, len(CHARACTERS), 20_000):
        text = in_contexts(CHARACTERS[begin : begin + 20_000], ["a{0}'s {0}1"])
        expected = theirs.encode_ordinary(text)
        assert list(ours._codec.plain_encode([text], allow_special=True)) == expected
        assert ours.encode(text) == expected


def test_newer_letters_by_hand() -> None:
    for letter in (NEWER_LETTER, NEWER_ASTRAL_LETTER):
        assert split(f"a{letter}'s", "gpt2") == ["a", f"{letter}'", "s"]
        assert split(f"a{letter}'s", "gpt4") == ["a", f"{letter}'", "s"]
        assert split(f"a{letter}'s", r"\w+") == ["a", f"{letter}'", "s"]
        assert reference.pre_tokenize(f"a{letter}'s") == ["a", f"{letter}'", "s"]
        assert compile_automaton("gpt2").match_length(f" {letter}a") == 2


def test_text_without_such_characters_is_not_copied() -> None:
    for text in ("", "plain", "é語🙂 ½", "".join(map(chr, range(0x250))), "\ud800"):
        assert with_stand_ins(text) is text


@pytest.fixture
def use_categories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[list[str]], None]]:
    """Return a function that replaces the category of every code point.

    With categories that no `regex` knows, `regex` is in the position of a release that is older than the categories.
    """
    caches = (
        *(category_ranges, categories._stand_ins, compile_automaton, find_obstacle),
        *(alphabet.begins, alphabet.category, alphabet.white_space, alphabet.all_characters, alphabet.end_of_text),
        *(alphabet._categories, alphabet._single_ranges),
    )

    def use(names: list[str]) -> None:
        lines = [f"{code:X} {name}" for code, name in enumerate(names) if code == 0 or name != names[code - 1]]
        (tmp_path / "categories.txt").write_text("\n".join(["# A comment.", *lines]))
        monkeypatch.setattr(categories, "_FILE", tmp_path / "categories.txt")
        for cache in caches:
            cache.cache_clear()

    yield use
    for cache in caches:
        cache.cache_clear()


def test_letters_and_numbers_that_regex_does_not_know_yet(use_categories) -> None:
    names = [name for begin, end, name in category_ranges() for _ in range(begin, end)]
    letter, astral_letter, number, space = "\u0378", "\U000e0080", "\u0379", "\u0380"  # unassigned to this day
    for character, name in {letter: "Lo", astral_letter: "Lu", number: "Nd", space: "Zs"}.items():
        names[ord(character)] = name
    use_categories(names)
    text = f"a{letter}{astral_letter}'s {number}1{letter}{space}\u0381!"
    expected = [f"a{letter}{astral_letter}", "'s", f" {number}1", letter, space, "\u0381!"]
    assert split(text, "gpt2") == split(text, r"'s| ?\p{L}+| ?\p{Nd}+|\s|\W+") == expected
    assert reference.pre_tokenize(text) == expected
    automaton = compile_automaton("gpt2")
    assert automaton.match_length(text) == len(expected[0])
    assert [automaton.match_length(character + "a1") for character in (letter, astral_letter, number)] == [2, 2, 1]
    assert split(f"a{NEWER_LETTER}'s", "gpt2") == ["a", f"{NEWER_LETTER}'", "s"], "as before"


def test_a_regex_with_the_same_categories_needs_no_stand_ins(use_categories) -> None:
    names = [""] * 0x110000
    text = "".join(map(chr, range(0x110000)))
    for name in {name for _, _, name in category_ranges()}:
        for match in regex.finditer(rf"\p{{{name}}}+", text):
            names[match.start() : match.end()] = [name] * (match.end() - match.start())
    use_categories(names)
    assert with_stand_ins(text) is text
    assert split(f"a{NEWER_LETTER}'s", "gpt2") == regex.findall(PATTERNS["gpt2"], f"a{NEWER_LETTER}'s")
