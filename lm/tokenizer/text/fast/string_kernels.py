"""A kernel that reads Python's strings where they are and writes them as UTF-8, without holding the GIL.

CPython keeps the characters of a string in an array of 1, 2 or 4 bytes each, whatever the largest one needs (PEP 393).
The array follows a header: the length, and a number with bits for the width (3), for whether the array follows the
header directly (1; it does except in instances of subclasses), and for whether all characters are ASCII (1).
"""

import numpy as np

from lm.tokenizer.text.fast.constants import ASCII_AT, KIND_SHIFT, OTHER_AT, STATE_AT
from lm.tokenizer.text.fast.intrinsics import (
    Bytes,
    Int,
    Int64s,
    bytes_at,
    compiled,
    int64s_at,
    kernel,
    lowest_bit,
    narrow,
    prefetch,
    uint16s_at,
    uint32s_at,
)

_NO_BITS = np.uint64(0)
_FAILED = -1
_AHEAD = 512  # characters; the processor's own prefetching stops at the end of a page


@kernel
def read_strings(
    addresses: Int64s, begins: Int64s, ends: Int64s, num_strings: Int, layout: Int64s, data: Bytes, data_ends: Int64s
):
    """Write characters begins[k] to ends[k] of each string k as UTF-8, one string after the other.

    Args:
        addresses: The addresses of the strings.
        layout: Where strings have what, see `ASCII_AT` and following.
        data: Output with space for 4 bytes per character, and 16 more.
        data_ends: Output, where the UTF-8 of each string ends.

    Returns:
        1, or 0 if a string has half of a surrogate pair or is an instance of a subclass.
    """
    at = 0
    for number in range(num_strings):
        address = addresses[number]
        state = int64s_at(address + layout[STATE_AT])[0] >> layout[KIND_SHIFT]
        kind, is_compact, is_ascii = state & 7, state >> 3 & 1, state >> 4 & 1
        if not is_compact:
            return 0
        begin, end = begins[number], ends[number]
        characters = address + (layout[ASCII_AT] if is_ascii else layout[OTHER_AT])
        if kind == 1:
            at = _write(bytes_at(characters), begin, end, data, at)
        elif kind == 2:
            at = _write(uint16s_at(characters), begin, end, data, at)
        else:
            at = _write(uint32s_at(characters), begin, end, data, at)
        if at == _FAILED:
            return 0
        data_ends[number] = at
    return 1


@compiled
def _write(characters, begin, end, data, at):
    """Write characters[begin:end] to data[at] and following; return where they end, or _FAILED."""
    position = begin
    while position < end:
        if position + 16 <= end:
            prefetch(characters, position + _AHEAD)
            non_ascii = narrow(characters, position, data, at)
            length = 16 if non_ascii == _NO_BITS else lowest_bit(non_ascii)
            position += length
            at += length
            if non_ascii == _NO_BITS:
                continue
        # Text in another script usually continues in it, so go on character by character up to the next ASCII one.
        while position < end:
            code = np.int64(characters[position])
            position += 1
            if code < 0x80:
                data[at] = code
                at += 1
                break
            if code < 0x800:
                data[at] = 0xC0 | code >> 6
                at += 1
            else:
                if code < 0x10000:
                    if code >> 11 == 0xD800 >> 11:
                        return _FAILED
                    data[at] = 0xE0 | code >> 12
                    at += 1
                else:
                    data[at] = 0xF0 | code >> 18
                    data[at + 1] = 0x80 | code >> 12 & 0x3F
                    at += 2
                data[at] = 0x80 | code >> 6 & 0x3F
                at += 1
            data[at] = 0x80 | code & 0x3F
            at += 1
    return at
