r"""GPT-2's pattern as a scanner that finds where pre-tokens start, 64 bytes at a time, at gigabytes per second.

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

Every character is a letter, a number, white space, or other. A mask has one bit for each of 64 bytes; all bytes of a
multi-byte character get the character's class. A character's neighbors determine whether a pre-token starts there:

- At a letter, number, or other, a pre-token starts unless the previous character has the same class or is the space
  that belongs to it.
- At white space, a pre-token starts if the previous character is not white space, or if this is the last character of
  its run and text follows: `\s+(?!\S)` leaves it out, so it is a pre-token by itself or the space before a word.
- `'` at the start of a pre-token, followed by one of the seven endings, is a contraction, and a pre-token starts after
  it.

    text    I 've  it's
    starts  ^^   ^^ ^   (" 've" is a space, a run of others and a run of letters: not a contraction)
"""

import numpy as np

from lm.tokenizer.text.fast.constants import LETTER, NUMBER, SPACE
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Uint32s, bytes_between, compiled, inlined, kernel, lowest_bit

_D, _E, _L, _M, _R, _S, _T, _V = b"delmrstv"
_ONE = np.uint64(1)
_LAST = np.uint64(63)
_NO_BITS = np.uint64(0)
_ALL_BITS = ~np.uint64(0)


@compiled
def scan(data, begin, end, classes, starts):
    """Write the positions where the pre-tokens of data[begin:end] start, then `end`; return the number of pre-tokens.

    Args:
        data: Valid UTF-8 from begin to end. Up to 128 bytes past the end may be read; they do not affect the result.
        classes: The class of every code point.
        starts: Output with space for end - begin + 1 numbers.
    """
    count = 0
    # The class of the last byte of the previous block, as bit 0.
    letter_before = number_before = space_before = other_before = ascii_space_before = _NO_BITS
    # The bytes in this block of a character that began in the previous block, by class and all together.
    letter_rest = number_rest = space_rest = rest = _NO_BITS
    # For a contraction that began in the previous block: where no pre-token starts in this block, and where one does.
    inside_contraction = after_contraction = _NO_BITS
    for at in range(begin, end, 64):
        valid = _ALL_BITS if end - at >= 64 else (_ONE << np.uint64(end - at)) - _ONE
        letters = bytes_between(data, at, 65, 90) | bytes_between(data, at, 97, 122)
        numbers = bytes_between(data, at, 48, 57)
        ascii_spaces = bytes_between(data, at, 32, 32)
        spaces = ascii_spaces | bytes_between(data, at, 9, 13)
        quotes = bytes_between(data, at, 39, 39)
        space_tails = space_rest
        starting_spaces = _NO_BITS

        non_ascii = bytes_between(data, at, 128, 255) & valid
        if non_ascii | rest:
            non_ascii &= ~rest
            letters |= letter_rest
            numbers |= number_rest
            spaces |= space_rest
            letter_rest = number_rest = space_rest = rest = _NO_BITS
            while non_ascii:
                position = lowest_bit(non_ascii)
                code, length = character(data, at + position)
                first = _ONE << np.uint64(position)
                span = (_ONE << np.uint64(length)) - _ONE
                in_block = span << np.uint64(position)
                in_next = (span >> _ONE) >> np.uint64(63 - position)
                non_ascii &= ~in_block
                rest |= in_next
                character_class = classes[code]
                if character_class == LETTER:
                    letters |= in_block
                    letter_rest |= in_next
                elif character_class == NUMBER:
                    numbers |= in_block
                    number_rest |= in_next
                elif character_class == SPACE:
                    spaces |= in_block
                    space_rest |= in_next
                    space_tails |= in_block & ~first
                    if not _is_space(data, at + position + length, end, classes):
                        starting_spaces |= first

        # Treat everything past the end as white space, so that a run of white space at the end is one pre-token.
        letters &= valid
        numbers &= valid
        ascii_spaces &= valid
        spaces |= ~valid
        others = ~(letters | numbers | spaces)
        after_other = others << _ONE | other_before
        after_ascii_space = ascii_spaces << _ONE | ascii_space_before
        before_space = spaces >> _ONE
        if space_rest or _is_space(data, at + 64, end, classes):
            before_space |= _ONE << _LAST

        first_of_run = (
            letters & ~(letters << _ONE | letter_before)
            | numbers & ~(numbers << _ONE | number_before)
            | others & ~after_other
        )
        start_mask = first_of_run & ~after_ascii_space
        apostrophes = quotes & start_mask
        start_mask |= spaces & ~space_tails & ~((spaces << _ONE | space_before) & before_space)
        start_mask |= starting_spaces
        start_mask = start_mask & ~inside_contraction | after_contraction
        inside_contraction = after_contraction = _NO_BITS
        while apostrophes:
            position = lowest_bit(apostrophes)
            apostrophes &= apostrophes - _ONE
            length = _contraction(data, at + position, end)
            if length:
                second = _ONE << np.uint64(position) << _ONE
                start_mask = start_mask & ~second | second << np.uint64(length - 1)
                if position == 63:
                    inside_contraction = _ONE
                after_contraction |= _ONE << np.uint64(position) >> _ONE >> np.uint64(63 - length)
        start_mask &= valid
        while start_mask:
            starts[count] = at + lowest_bit(start_mask)
            count += 1
            start_mask &= start_mask - _ONE

        letter_before = letters >> _LAST
        number_before = numbers >> _LAST
        space_before = spaces >> _LAST
        other_before = others >> _LAST
        ascii_space_before = ascii_spaces >> _LAST
    starts[count] = end
    return count


@inlined
def character(data, at):
    """Return the code point that starts at data[at], and its length in bytes."""
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
    return at >= end or classes[character(data, at)[0]] == SPACE


@inlined
def _contraction(data, at, end):
    """Return the length of 's, 't, 're, 've, 'm, 'll or 'd if one starts at data[at], an apostrophe; otherwise 0."""
    if at + 1 >= end:
        return 0
    first = data[at + 1]
    if first in (_D, _M, _S, _T):
        return 2
    if at + 2 >= end:
        return 0
    second = data[at + 2]
    if (first in (_R, _V) and second == _E) or (first == _L and second == _L):
        return 3
    return 0


@kernel
def find_starts(data: Bytes, begin: Int, end: Int, classes: Bytes, starts: Uint32s):
    """Run the scanner; only tests call this kernel."""
    return scan(data, begin, end, classes, starts)
