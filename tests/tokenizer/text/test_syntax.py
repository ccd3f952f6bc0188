import re

import pytest

from lm.tokenizer.text.alphabet import all_characters, category, end_of_text, one_of, white_space
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.syntax import Character, Choice, LookAhead, Repeat, Series, Unsupported, parse

A, B = Character(one_of("a")), Character(one_of("b"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_named_patterns_are_supported(pattern: str) -> None:
    assert isinstance(parse(PATTERNS[pattern]), Choice)


@pytest.mark.parametrize(
    ("pattern", "tree"),
    [
        ("a", A),
        ("ab|b", Choice((Series((A, B)), B))),
        ("(a|b)", Choice((A, B))),
        ("(?:a)b", Series((A, B))),
        ("a|", Choice((A, Series(())))),
        ("a?", Repeat(A, 0, 1, "greedy")),
        ("a*?", Repeat(A, 0, None, "lazy")),
        ("a++", Repeat(A, 1, None, "possessive")),
        ("a{2}b{2,}", Series((Repeat(A, 2, 2, "greedy"), Repeat(B, 2, None, "greedy")))),
        ("a{1,3}+", Repeat(A, 1, 3, "possessive")),
        ("(?i:a)b", Series((Character(one_of("aA")), B))),
        (r"[ab\]-]", Character(one_of("ab]-"))),
        ("[]a]", Character(one_of("]a"))),
        (r"[!-#\t-\n]", Character(one_of('!"#\t\n'))),
        (r"[^\s\p{L}]", Character(all_characters() & ~white_space() & ~category("L"))),
        (r"\pL\P{Nd}", Series((Character(category("L")), Character(all_characters() & ~category("Nd"))))),
        (r".\.", Series((Character(all_characters() & ~one_of("\n")), Character(one_of("."))))),
        (r"a(?!\S)", Series((A, LookAhead(white_space() | end_of_text())))),
        (r"a(?=[ab])", Series((A, LookAhead(one_of("ab"))))),
        (r"\s++$", Series((Repeat(Character(white_space()), 1, None, "possessive"), LookAhead(end_of_text())))),
    ],
)
def test_trees_by_hand(pattern: str, tree: object) -> None:
    assert parse(pattern) == tree


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        (r"\w+", repr(r"\w")),
        (r"a\b", repr(r"\b")),
        (r"(?<=a)b", "'('"),
        (r"(?>a)", "'('"),
        (r"(?i)a", "'('"),
        (r"(?P<name>a)", "'('"),
        (r"^a", "'^'"),
        (r"(?=ab)a", "look-ahead at more than one character"),
        (r"a$", "'$', except after"),
        (r"a++$", "'$', except after"),
        (r"\s+$", "'$', except after"),
        (r"(?!a)*b", "the repetition"),
        (r"a{1,1000}", "more than 100 repetitions"),
        (r"é", "the character 'é'"),
        (r"[à-é]", "a range"),
        (r"[a-\d]", "a range"),
        (r"[[a]", "a set within a set"),
        (r"[a--b]", "a set within a set"),
        (r"(?i:[^a])", "a negated set where the case is ignored"),
        (r"(?i:\p{Lu})", "where the case is ignored"),
        (r"(?i:ſ)", "not ASCII where the case is ignored"),
        (r"\p{Han}", repr(r"\p")),
        (r"\p{Xy}", "p{Xy}"),
        (r"\x41", repr(r"\x")),
        (r"a{e<=1}", "'{'"),
    ],
)
def test_what_is_not_supported_is_named(pattern: str, part: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(part)):
        parse(pattern)
