"""The scanner: finds where the pre-tokens of a pattern start, with the tables of its automaton (see tables.py).

In ASCII text, five neighboring characters nearly always say whether a pre-token starts at the fourth of them (see
`lm.tokenizer.text.contexts`). So the scanner looks up one context after the other, which the processor does for several
of them at once. Only where a context does not say it, near characters that are not ASCII, and at both ends of the text,
the automaton runs from the start of the pre-token to its end, character by character, where each step waits for the one
before.
"""

import numpy as np

from lm.tokenizer.text.fast.constants import BEFORE_START, CLASSES, CONTEXTS, GROUPS, NUM_GROUPS, SPLITS, TRANSITIONS
from lm.tokenizer.text.fast.intrinsics import (
    Bytes,
    Int,
    Uint32s,
    compiled,
    count_bits,
    inlined,
    kernel,
    load_2_bytes,
    load_8_bytes,
    lowest_bit,
)

_AFTER = 1  # how many characters of a context are after the one that it is about
_BLOCK = 16  # the contexts of this many characters are looked up at once, those of two neighbors together
_NON_ASCII = np.uint64(0x8080808080808080)
_ONE = np.uint64(1)
_BEFORE_START = np.uint64(BEFORE_START + NUM_GROUPS * BEFORE_START)
_BEGINS = np.uint64(0x55555555)  # the results of a block have two bits for each character
_UNKNOWN = np.uint64(0xAAAAAAAA)
_SENTINELS = np.uint64(0x3F << 32)


@inlined
def scan(data, begin, end, automaton, starts):
    """Write the positions where the pre-tokens of data[begin:end] start, then `end`; return the number of pre-tokens.

    Args:
        data: Valid UTF-8 from begin to end. Up to 128 bytes past the end may be read; they do not affect the result.
        automaton: The tables of the pattern.
        starts: Output with space for end - begin + 4 numbers.
    """
    return scan_block(data, begin, end, end, automaton, starts)


@compiled
def scan_block(data, begin, stop, end, automaton, starts):
    """Write the positions where the pre-tokens of data[begin:end] start, as far as `stop`; return their number.

    After the starts follows the end of the last pre-token, which is `stop` or later: where the next block begins. With
    blocks of a few kilobytes, what one loop writes is still in the fastest cache when the next loop reads it.

    Args:
        data, automaton: As in `scan`.
        starts: Output with space for stop - begin + 32 numbers, or 4 if `stop` is `end`.
    """
    count = 0
    at = begin
    while at < stop:
        starts[count] = at
        count += 1
        position = at + 1
        if position + _BLOCK + _AFTER <= end and load_8_bytes(data, at) & _NON_ASCII == 0:
            context = _BEFORE_START | _group_pair(data, at, automaton) << np.uint64(7)
            unknown = np.uint64(0)
            while unknown == 0 and position < stop and position + _BLOCK + _AFTER <= end:
                results = np.uint64(0)
                for step in range(0, _BLOCK, 2):
                    context |= _group_pair(data, position + 1 + step, automaton) << np.uint64(14)
                    results |= np.uint64(automaton[CONTEXTS + np.int64(context)]) << np.uint64(2 * step)
                    context >>= np.uint64(7)
                unknown = results & _UNKNOWN
                begins = results & _BEGINS
                # The starts after the first context that does not say it are not certain.
                begins &= (unknown & -unknown) - _ONE
                num_begins = count_bits(begins)
                # Mostly there are at most six, so six are always written: a branch would have to be guessed.
                begins |= _SENTINELS
                for number in range(6):
                    starts[count + number] = position + (lowest_bit(begins) >> 1)
                    begins &= begins - _ONE
                for number in range(6, num_begins):
                    starts[count + number] = position + (lowest_bit(begins) >> 1)
                    begins &= begins - _ONE
                count += num_begins
                position += _BLOCK
            at = np.int64(starts[count - 1])
        at = _end_of_match(data, at, end, automaton)
    starts[count] = at
    return count


@inlined
def _group_pair(data, at, automaton):
    """Return the pair of groups of data[at] and data[at + 1], a number of seven bits."""
    return np.uint64(automaton[GROUPS + np.int64(load_2_bytes(data, at))])


@inlined
def _end_of_match(data, at, end, automaton):
    """Return the end of the pre-token that starts at data[at]."""
    stop = at
    state = 1 << 6
    while True:
        length = 0
        character_class = 0
        if at < end:
            code, length = character(data, at)
            character_class = np.int64(automaton[CLASSES + code])
        transition = np.int64(automaton[TRANSITIONS + (state | character_class)])
        if transition & 1:
            stop = at
        state = transition >> 1 << 6
        if state == 0:
            return stop
        at += length


@inlined
def may_split(data, at, automaton):
    """Return whether a text may be split before data[at], whatever the rest of it is."""
    before = at - 1
    while is_continuation(data, before):
        before -= 1
    first = np.int64(automaton[CLASSES + character(data, before)[0]])
    second = np.int64(automaton[CLASSES + character(data, at)[0]])
    return automaton[SPLITS + (first << 6 | second)] != 0


@inlined
def is_continuation(data, at):
    """Return whether data[at] is a byte of a character after its first one."""
    return data[at] & 0xC0 == 0x80


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


@kernel
def find_starts(data: Bytes, begin: Int, end: Int, block_size: Int, automaton: Bytes, block: Uint32s, starts: Uint32s):
    """Run the scanner on one block after the other, with scratch space for one; only tests call this kernel."""
    count = 0
    at = begin
    while at < end:
        num_pre_tokens = scan_block(data, at, min(at + block_size, end), end, automaton, block)
        for number in range(num_pre_tokens):
            starts[count + number] = block[number]
        count += num_pre_tokens
        at = np.int64(block[num_pre_tokens])
    starts[count] = at
    return count
