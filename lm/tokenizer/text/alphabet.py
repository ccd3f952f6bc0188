r"""Sets of characters as integers, for the compiler of patterns.

A pattern distinguishes far fewer characters than Unicode has. So all code points are divided into ranges within which
no pattern of our syntax can tell one character from another, and a set of characters is an integer with one bit per
range. Union, intersection and complement are `|`, `&` and `^ all_characters()`:

    >>> letters = category("L")
    >>> (letters & one_of("ab12")) == one_of("ab")
    True

The end of the text, which look-aheads can see, has a bit too: END.
"""

from bisect import bisect_right
from functools import cache

import numpy as np

from lm.tokenizer.text.categories import NUM_CODE_POINTS, category_ranges

# White space in the category of controls; the rest is in the category of separators.
_WHITE_CONTROLS = "\t\n\v\f\r\x85"

# The characters beyond ASCII that a letter also matches when `regex` ignores the case: the long s, the kelvin sign, and
# the other i of Turkish.
_FOLDED = {"s": "ſ", "S": "ſ", "k": "\u212a", "K": "\u212a", "i": "\u0130", "I": "\u0131"}


def one_of(characters: str) -> int:
    """Return the set of these characters; they must be in ASCII, white space, or the case-folded forms of a letter.

    Raises:
        KeyError: A character has no range of its own.
    """
    bits = 0
    for character in characters:
        bits |= 1 << _single_ranges()[character]
    return bits


@cache
def category(name: str) -> int:
    """Return the set of the characters of a general category, such as `Lu`, or of all that begin with `L`.

    Raises:
        KeyError: There is no such category.
    """
    bits = 0
    for number, found in enumerate(_categories()):
        if found.startswith(name):
            bits |= 1 << number
    if not bits:
        raise KeyError(name)
    return bits


@cache
def white_space() -> int:
    r"""Return the set of the characters that `\s` matches."""
    return category("Z") | one_of(_WHITE_CONTROLS)


@cache
def all_characters() -> int:
    return (1 << len(begins())) - 1


@cache
def end_of_text() -> int:
    return 1 << len(begins())


def ignore_case(characters: str) -> str:
    """Return ASCII characters together with all that match them if the case is ignored."""
    return "".join(character.lower() + character.upper() + _FOLDED.get(character, "") for character in characters)


@cache
def begins() -> list[int]:
    """Return the first code point of each range; a range ends where the next one begins."""
    singles = [ord(character) for character in _single_characters()]
    cuts = {begin for begin, _, _ in category_ranges()} | {*singles} | {code + 1 for code in singles}
    return sorted(cuts)


@cache
def _categories() -> list[str]:
    """Return the general category of each range."""
    starts, _, names = zip(*category_ranges())
    return [names[bisect_right(starts, begin) - 1] for begin in begins()]


@cache
def _single_ranges() -> dict[str, int]:
    numbers = {begin: number for number, begin in enumerate(begins())}
    return {character: numbers[ord(character)] for character in _single_characters()}


def _single_characters() -> str:
    return "".join(map(chr, range(128))) + "\x85" + "".join(_FOLDED.values())


def expand(values: np.ndarray) -> np.ndarray:
    """Return an array with one element per code point, given one value per range."""
    return np.repeat(values, np.diff([*begins(), NUM_CODE_POINTS]))
