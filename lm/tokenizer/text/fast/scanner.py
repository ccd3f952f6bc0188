r"""GPT-2's pattern as a scanner: where its pre-tokens start, 64 bytes at a time, at gigabytes a second.

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

Every character is a letter, a number, white space or other. A mask holds a bit for each of 64 bytes; a character of
several bytes has its class in all of them. Whether a pre-token starts at a character can be told from its neighbours:

- A letter, number or other starts one unless its predecessor has the same class, or is the blank that goes with it.
- White space starts one if its predecessor is none, or if it is the last of its run and text follows: `\s+(?!\S)`
  leaves it behind, to stand alone or, if it is a blank, to go with the word.
- `'` that starts a pre-token and is followed by one of the seven endings makes it end there.

    text    I 've  it's
    starts  ^^   ^^ ^   (" 've" is a blank and a run of others and letters: no contraction)
"""

import numpy as np

from lm.tokenizer.text.fast.constants import LETTER, NUMBER, SPACE
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Uint32s, bytes_between, compiled, inlined, kernel, lowest_bit

_D, _E, _L, _M, _R, _S, _T, _V = b"delmrstv"
_ONE = np.uint64(1)
_LAST = np.uint64(63)
_NONE = np.uint64(0)
_ALL = ~np.uint64(0)


@compiled
def scan(data, begin, end, classes, starts):
    """Write where the pre-tokens of data[begin:end] start, then `end`; return how many they are.

    Args:
        data: valid UTF-8 from begin to end; up to 128 bytes after it are read, and make no difference.
        classes: the class of every code point.
        starts: room for end - begin + 1 numbers.
    """
    count = 0
    # Of the last byte of the block before: bit 0 is its class.
    letter_before = number_before = space_before = other_before = blank_before = _NONE
    # Of a character that reaches into this block: its bytes here, by class, and those that are not its first.
    letter_rest = number_rest = space_rest = rest = _NONE
    # Of a contraction that reaches into this block: where no pre-token starts, and where one does.
    inside_contraction = after_contraction = _NONE
    for at in range(begin, end, 64):
        valid = _ALL if end - at >= 64 else (_ONE << np.uint64(end - at)) - _ONE
        letters = bytes_between(data, at, 65, 90) | bytes_between(data, at, 97, 122)
        numbers = bytes_between(data, at, 48, 57)
        blanks = bytes_between(data, at, 32, 32)
        spaces = blanks | bytes_between(data, at, 9, 13)
        quotes = bytes_between(data, at, 39, 39)
        space_tails = space_rest
        starting_spaces = _NONE

        wide = bytes_between(data, at, 128, 255) & valid
        if wide | rest:
            wide &= ~rest
            letters |= letter_rest
            numbers |= number_rest
            spaces |= space_rest
            letter_rest = number_rest = space_rest = rest = _NONE
            while wide:
                place = lowest_bit(wide)
                code, length = _character(data, at + place)
                first = _ONE << np.uint64(place)
                reach = (_ONE << np.uint64(length)) - _ONE
                here = reach << np.uint64(place)
                there = (reach >> _ONE) >> np.uint64(63 - place)
                wide &= ~here
                rest |= there
                kind = classes[code]
                if kind == LETTER:
                    letters |= here
                    letter_rest |= there
                elif kind == NUMBER:
                    numbers |= here
                    number_rest |= there
                elif kind == SPACE:
                    spaces |= here
                    space_rest |= there
                    space_tails |= here & ~first
                    if not _is_space(data, at + place + length, end, classes):
                        starting_spaces |= first

        # Behind the end all is white space, so that the last run of it is one pre-token.
        letters &= valid
        numbers &= valid
        blanks &= valid
        spaces |= ~valid
        others = ~(letters | numbers | spaces)
        after_other = others << _ONE | other_before
        after_blank = blanks << _ONE | blank_before
        before_space = spaces >> _ONE
        if space_rest or _is_space(data, at + 64, end, classes):
            before_space |= _ONE << _LAST

        first_of_run = (
            letters & ~(letters << _ONE | letter_before)
            | numbers & ~(numbers << _ONE | number_before)
            | others & ~after_other
        )
        found = first_of_run & ~after_blank
        apostrophes = quotes & found
        found |= spaces & ~space_tails & ~((spaces << _ONE | space_before) & before_space)
        found |= starting_spaces
        found = found & ~inside_contraction | after_contraction
        inside_contraction = after_contraction = _NONE
        while apostrophes:
            place = lowest_bit(apostrophes)
            apostrophes &= apostrophes - _ONE
            length = _contraction(data, at + place, end)
            if length:
                second = _ONE << np.uint64(place) << _ONE
                found = found & ~second | second << np.uint64(length - 1)
                if place == 63:
                    inside_contraction = _ONE
                after_contraction |= _ONE << np.uint64(place) >> _ONE >> np.uint64(63 - length)
        found &= valid
        while found:
            starts[count] = at + lowest_bit(found)
            count += 1
            found &= found - _ONE

        letter_before = letters >> _LAST
        number_before = numbers >> _LAST
        space_before = spaces >> _LAST
        other_before = others >> _LAST
        blank_before = blanks >> _LAST
    starts[count] = end
    return count


@inlined
def _character(data, at):
    """The code point that starts at data[at], and the number of its bytes."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, 1
    second = np.int64(data[at + 1]) & 0x3F
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | second, 2
    third = np.int64(data[at + 2]) & 0x3F
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | second << 6 | third, 3
    return (lead & 0x07) << 18 | second << 12 | third << 6 | np.int64(data[at + 3]) & 0x3F, 4


@inlined
def _is_space(data, at, end, classes):
    return at >= end or classes[_character(data, at)[0]] == SPACE


@inlined
def _contraction(data, at, end):
    """The length of 's, 't, 're, 've, 'm, 'll or 'd at data[at], an apostrophe; 0 if there is none."""
    if at + 1 >= end:
        return 0
    first = data[at + 1]
    if first == _D or first == _M or first == _S or first == _T:
        return 2
    if at + 2 >= end:
        return 0
    second = data[at + 2]
    if (first == _R or first == _V) and second == _E or first == _L and second == _L:
        return 3
    return 0


@kernel
def find_starts(data: Bytes, begin: Int, end: Int, classes: Bytes, starts: Uint32s):
    """The scanner by itself, for tests."""
    return scan(data, begin, end, classes, starts)
