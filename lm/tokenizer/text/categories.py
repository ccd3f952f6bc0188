r"""The general categories of characters in a fixed version of Unicode.

Each version of Unicode turns thousands of unassigned code points into letters, and new releases of `regex` follow. The
pre-tokens of a text must not change with them, so `unicode-16.0.0.txt` holds the categories of the version that
tiktoken 0.14 and tokenizers 0.23 use too. Where `regex` disagrees, stand-ins make it follow that version:

    >>> findall(regex.compile(r"\p{L}+"), "a\U0003d000b")  # a letter since Unicode 18
    ['a', 'b']
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import regex

UNICODE_VERSION = "16.0.0"
NUM_CODE_POINTS = 0x110000

_FILE = Path(__file__).with_name(f"unicode-{UNICODE_VERSION}.txt")


def findall(pattern: regex.Pattern[str], text: str) -> list[str]:
    """Return the matches of a pattern without groups, for which characters have the categories of UNICODE_VERSION."""
    replaced = with_stand_ins(text)
    if replaced is text:
        return pattern.findall(text)
    return [text[match.start() : match.end()] for match in pattern.finditer(replaced)]


def with_stand_ins(text: str) -> str:
    """Replace each character for which `regex` has another category by one for which it has the right category.

    The result has the same length, so that a match in it is at the same place as in `text`. If there is nothing to
    replace, which is nearly always the case, it is `text` itself.
    """
    if text.isascii():
        return text
    unlike_regex, stand_ins = _stand_ins()
    if not unlike_regex.search(text):
        return text
    return _to_text(stand_ins[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")])


@cache
def category_ranges() -> list[tuple[int, int, str]]:
    """Return the first code point, the end, and the category of each range of code points of one category."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    codes, categories = zip(*(line.split() for line in lines if not line.startswith("#")))
    begins = [int(code, 16) for code in codes]
    return list(zip(begins, [*begins[1:], NUM_CODE_POINTS], categories))


@cache
def _stand_ins() -> tuple[re.Pattern[str], np.ndarray]:
    """Return a pattern that finds the characters to be replaced, and the stand-in of each code point, mostly itself."""
    stand_ins = np.arange(NUM_CODE_POINTS, dtype="<u4")
    characters = _to_text(stand_ins)
    others = {category: regex.compile(rf"\P{{{category}}}+") for category in {name for _, _, name in category_ranges()}}
    agreed: dict[str, int] = {}
    different: list[tuple[int, int, str]] = []
    for begin, end, category in category_ranges():
        spans = [match.span() for match in others[category].finditer(characters, begin, end)]
        different += [(*span, category) for span in spans]
        if not spans:
            agreed[category] = begin
    for begin, end, category in different:
        stand_ins[begin:end] = agreed[category]
    # The set is negated because `re` compares a character with one range after the other until one contains it.
    begins = [*(begin for begin, _, _ in different), NUM_CODE_POINTS]
    ends = [0, *(end for _, end, _ in different)]
    agreed_ranges = [f"\\U{end:08x}-\\U{begin - 1:08x}" for end, begin in zip(ends, begins) if end < begin]
    return re.compile(f"[^{''.join(agreed_ranges)}]"), stand_ins


def _to_text(code_points: np.ndarray) -> str:
    return code_points.tobytes().decode("utf-32-le", "surrogatepass")
