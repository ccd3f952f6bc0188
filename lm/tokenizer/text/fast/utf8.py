"""Kernels that look at bytes before pre-tokenization: are they UTF-8, and where are the special tokens?"""

import numpy as np

from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, bytes_between, compiled, inlined, kernel, lowest_bit

_ONE = np.uint64(1)
_NO_BITS = np.uint64(0)


@kernel
def find_invalid_utf8(data: Bytes, end: Int):
    """Return the position of the first byte of data[:end] that is not UTF-8 (RFC 3629, section 4), or `end`.

    May read up to 64 bytes past the end; they do not affect the result.
    """
    at = 0
    while at < end:
        non_ascii = bytes_between(data, at, 128, 255)
        if non_ascii == _NO_BITS:
            at += 64
            continue
        at += lowest_bit(non_ascii)
        # Text in another script usually continues in it: check it character by character up to the next ASCII one.
        while at < end and data[at] >= 0x80:
            length = _character_length(data, at, end)
            if length == 0:
                return at
            at += length
    return end


@inlined
def _character_length(data, at, end):
    """Return the length of the non-ASCII character at data[at], or 0 if it is invalid or cut off by the end."""
    lead = data[at]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if lead < 0xC2 or lead > 0xF4 or at + length > end:
        return 0
    # The second byte rules out overlong forms, surrogates, and code points beyond U+10FFFF.
    least = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
    greatest = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
    if data[at + 1] < least or data[at + 1] > greatest:
        return 0
    for position in range(at + 2, at + length):
        if data[position] & 0xC0 != 0x80:
            return 0
    return length


@compiled
def find_special(data, begin, end, texts, bounds, num_special):
    """Return the position of the first special token in data[begin:end] and its number; `end` and 0 if there is none.

    Args:
        texts: The bytes of all special tokens, ordered as in `SpecialTokens`. At each position the first that matches
            wins.
        bounds: Special token k is texts[bounds[k] : bounds[k + 1]].
    """
    for block in range(begin, end, 64):
        candidates = _NO_BITS
        for token in range(num_special):
            # Most special tokens begin with the same byte, `<` or `[`; compare only once for all of these.
            if token == 0 or texts[bounds[token]] != texts[bounds[token - 1]]:
                candidates |= bytes_between(data, block, texts[bounds[token]], texts[bounds[token]])
        while candidates:
            at = block + lowest_bit(candidates)
            candidates &= candidates - _ONE
            for token in range(num_special):
                if is_special(data, at, end, texts, bounds, token):
                    return at, token
    return end, 0


@inlined
def is_special(data, at, end, texts, bounds, token):
    """Return whether data[at:end] begins with the special token number `token`."""
    position, length = bounds[token], bounds[token + 1] - bounds[token]
    if at + length > end:
        return False
    for step in range(length):  # noqa: SIM110 - numba does not compile `all`
        if data[at + step] != texts[position + step]:
            return False
    return True


@kernel
def find_special_position(data: Bytes, begin: Int, end: Int, texts: Bytes, bounds: Int64s, num_special: Int):
    """Return the position that `find_special` finds; only tests call this kernel."""
    return find_special(data, begin, end, texts, bounds, num_special)[0]
