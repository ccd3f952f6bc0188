"""What comes before pre-tokens: whether bytes are UTF-8, and where the special tokens stand in them."""

import numpy as np

from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, bytes_between, compiled, inlined, kernel, lowest_bit

_ONE = np.uint64(1)
_NONE = np.uint64(0)


@kernel
def find_invalid(data: Bytes, end: Int):
    """The place of the first byte of data[:end] that is not UTF-8 (RFC 3629, section 4), or `end`.

    Up to 64 bytes after the end are read, and make no difference.
    """
    at = 0
    while at < end:
        wide = bytes_between(data, at, 128, 255)
        if wide == _NONE:
            at += 64
            continue
        at += lowest_bit(wide)
        # Text in another script goes on in it: character by character, until the next ASCII one.
        while at < end and data[at] >= 0x80:
            length = _character_length(data, at, end)
            if length == 0:
                return at
            at += length
    return end


@inlined
def _character_length(data, at, end):
    """The length of the character at data[at], which is not ASCII; 0 if it is none, or cut short."""
    lead = data[at]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if lead < 0xC2 or lead > 0xF4 or at + length > end:
        return 0
    # Longer than needed, half of a surrogate pair, or beyond U+10FFFF: told by the second byte.
    least = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
    greatest = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
    if data[at + 1] < least or data[at + 1] > greatest:
        return 0
    for place in range(at + 2, at + length):
        if data[place] & 0xC0 != 0x80:
            return 0
    return length


@compiled
def find_special(data, begin, end, texts, bounds, num_special):
    """The first place in data[begin:end] where a special token stands, and which; `end` and 0 if there is none.

    Args:
        texts: the bytes of all special tokens, the longest first: the first that matches is taken.
        bounds: token k is texts[bounds[k] : bounds[k + 1]].
    """
    for block in range(begin, end, 64):
        candidates = _NONE
        for token in range(num_special):
            # Most tokens begin alike, `<` or `[`: one comparison for all of these.
            if token == 0 or texts[bounds[token]] != texts[bounds[token - 1]]:
                candidates |= bytes_between(data, block, texts[bounds[token]], texts[bounds[token]])
        while candidates:
            at = block + lowest_bit(candidates)
            candidates &= candidates - _ONE
            for token in range(num_special):
                length = bounds[token + 1] - bounds[token]
                if at + length <= end and _same(data, at, texts, bounds[token], length):
                    return at, token
    return end, 0


@inlined
def _same(data, at, texts, place, length):
    for step in range(length):
        if data[at + step] != texts[place + step]:
            return False
    return True


@kernel
def find_first_special(data: Bytes, begin: Int, end: Int, texts: Bytes, bounds: Int64s, num_special: Int):
    """`find_special` by itself, for tests: only the place."""
    return find_special(data, begin, end, texts, bounds, num_special)[0]
