import numpy as np
import regex

from lm.tokenizer.text.alphabet import (
    all_characters,
    begins,
    category,
    end_of_text,
    expand,
    ignore_case,
    one_of,
    white_space,
)
from lm.tokenizer.text.categories import category_ranges

CHARACTERS = "".join(map(chr, range(128)))
EVERY_CHARACTER = "".join(map(chr, range(0x110000)))


def members(bits: int) -> set[str]:
    """Return the characters of a set, range by range."""
    limits = [*begins(), 0x110000]
    numbers = [number for number in range(len(limits) - 1) if bits >> number & 1]
    return {chr(code) for number in numbers for code in range(limits[number], limits[number + 1])}


def test_sets_of_characters_are_those_of_regex() -> None:
    assert members(white_space()) == set(regex.findall(r"\s", EVERY_CHARACTER))
    for characters in ("a", "\n", "b'Z~\0"):
        assert members(one_of(characters)) == set(characters)
    assert members(all_characters()) == set(EVERY_CHARACTER) and not members(end_of_text())


def test_categories_are_those_of_the_file() -> None:
    for name in ("L", "Lu", "Ll", "N", "Nd", "M", "Zs"):
        ranges = [range(begin, end) for begin, end, found in category_ranges() if found.startswith(name)]
        assert members(category(name)) == {chr(code) for codes in ranges for code in codes}


def test_characters_without_their_case_are_those_of_regex() -> None:
    for character in CHARACTERS:
        expected = set(regex.findall(f"(?i:{regex.escape(character)})", EVERY_CHARACTER))
        assert set(ignore_case(character)) == members(one_of(ignore_case(character))) == expected


def test_values_of_ranges_are_expanded_to_code_points() -> None:
    expanded = expand(np.arange(len(begins())))
    assert len(expanded) == 0x110000 and expanded[begins()].tolist() == list(range(len(begins())))
