"""The automata find the matches of `regex`: of every code point, and of strings that patterns can tell apart."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer.text.automaton import Automaton, compile_automaton, find_obstacle
from lm.tokenizer.text.categories import findall
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.syntax import Unsupported

CUSTOM = [
    r"a+(?!b)|.|\n",
    r"(?:a|ab)(?:c|bcd)(?:d*)|[^a]|a",
    r"[^\n]*?b|[^b]",
    r"a{2,3}?b?|a*b{2}|[\s\S]",
    r"(?i:the|an?)(?!\p{L})|\p{L}+|[^\p{L}]",
    r"\p{Lu}{1,3}+\p{Ll}*|[^\p{Lu}]",
    r"(a|b|)c|[^c]|c",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
]
ANY = st.text() | st.text(
    st.sampled_from("aAbcdéÉʰ中ǅ\u0301𐀁1²٣𝟘 \n\r\t\x85\u00a0\u3000!\0¿—🙂'sdmtrevlLSſR/\""), max_size=40
)


def split(automaton: Automaton, text: str) -> list[str]:
    pieces = []
    begin = 0
    while begin < len(text):
        length = automaton.match_length(text, begin)
        assert length > 0, "every text should be matched"
        pieces.append(text[begin : begin + length])
        begin += length
    return pieces


def findall_of(pattern: str) -> Callable[[str], list[str]]:
    """Return what finds all matches; groups of the pattern do not count."""
    compiled = regex.compile(regex.sub(r"(?<!\\)\((?!\?)", "(?:", PATTERNS.get(pattern, pattern)))
    return lambda text: findall(compiled, text)


@pytest.mark.parametrize("pattern", [*PATTERNS, *CUSTOM])
@settings(max_examples=300)
@given(text=ANY)
def test_matches_are_those_of_regex(pattern: str, text: str) -> None:
    assert split(compile_automaton(pattern), text) == findall_of(pattern)(text)


@pytest.mark.parametrize("pattern", [*PATTERNS, *CUSTOM])
def test_short_strings_of_one_character_of_each_class(pattern: str) -> None:
    automaton = compile_automaton(pattern)
    _, firsts = np.unique(automaton.classes, return_index=True)
    find = findall_of(pattern)
    for length in (1, 2, 3):
        for codes in itertools.product(firsts.tolist(), repeat=length):
            text = "".join(map(chr, codes))
            assert split(automaton, text) == find(text), text


@pytest.mark.parametrize("pattern", [*PATTERNS, *CUSTOM])
@settings(max_examples=300)
@given(before=ANY, after=ANY)
def test_a_text_may_be_split_where_the_automaton_says_so(pattern: str, before: str, after: str) -> None:
    automaton = compile_automaton(pattern)
    text = before + after
    find = findall_of(pattern)
    for position in range(1, len(text)):
        first, second = automaton.classes[[ord(character) for character in text[position - 1 : position + 1]]]
        if automaton.splits[first, second]:
            assert find(text[:position]) + find(text[position:]) == find(text), position


def test_splits_by_hand() -> None:
    def may_split(pattern: str, before: str, after: str) -> bool:
        automaton = compile_automaton(pattern)
        return bool(automaton.splits[automaton.classes[ord(before)], automaton.classes[ord(after)]])

    for pattern in PATTERNS:
        assert may_split(pattern, "a", " ") and may_split(pattern, "1", "a") and may_split(pattern, "!", " ")
        assert (
            not may_split(pattern, "a", "a") and not may_split(pattern, " ", "a") and not may_split(pattern, " ", "\n")
        )
    assert may_split("gpt4", "a", "'") and not may_split("gpt4o", "a", "'")
    assert may_split("llama3", "\n", "a") and not may_split("gpt2", "\n", "a")


def test_alternatives_are_preferred_in_order() -> None:
    for pattern, lengths in {"a|ab|[^a]": [1, 1], "ab|a|[^a]": [2], "(?:a|ab)(?:c|bcd)|a|[^a]": [4]}.items():
        text = "abcd" if len(lengths) == 1 and lengths[0] == 4 else "ab"
        assert [len(piece) for piece in split(compile_automaton(pattern), text)] == lengths


@pytest.mark.parametrize(
    ("pattern", "obstacle"),
    [
        ("a*", "may match the empty text"),
        ("a+", "does not match every text"),
        (r"\p{L}+|\s", "does not match every text"),
        ("a(?=b)|[^a]", "does not match every text"),
        ("a++a|.|\n", "a possessive repetition of which the rest"),
        ("(?:ab)++|.", "a possessive repetition of more than one character"),
        ("(?:a?)*b|.", "the repetition of something that may be empty"),
        ("(?:" + "|".join(["a{100}"] * 30) + ")", "too long a pattern"),
        ("(?:a|b)*a(?:a|b){11}|.|\n", "too many states"),
        ("(?:a|b)*a(?:a|b){6}|.|\n", "more than 127 states"),
        (r"\w+|\W", repr(r"\w")),
    ],
)
def test_what_cannot_be_compiled_is_refused(pattern: str, obstacle: str) -> None:
    assert obstacle in (find_obstacle(pattern) or "")
    with pytest.raises(Unsupported):
        compile_automaton(pattern)
    assert regex.compile(pattern), "it should be a valid expression"


def test_a_pattern_of_more_classes_than_the_tables_have_is_refused() -> None:
    letters = [chr(code) for code in range(ord("0"), 127) if chr(code).isalnum()]
    assert "classes of characters" in (find_obstacle("|".join([*letters, "!", '"', "#", r"[\s\S]"])) or "")
