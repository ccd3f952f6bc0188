"""A kernel that finds where a text can be split, so that several threads process the parts."""

from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, compiled, kernel
from lm.tokenizer.text.fast.scanner import is_continuation, may_split
from lm.tokenizer.text.fast.utf8 import is_special


@kernel
def find_split(
    data: Bytes, size: Int, automaton: Bytes, texts: Bytes, bounds: Int64s, num_special: Int, longest_special: Int
):
    """Return the last position where data[:size] may be split, whatever precedes and follows it; 0 if there is none.

    Args:
        data: Valid UTF-8.
        automaton: The tables of the pattern, see tables.py.
        texts, bounds, num_special, longest_special: See `SpecialTokens`.
    """
    # Stay this far from both ends, so that every special token that might cross the split is seen completely.
    for at in range(size - longest_special, longest_special - 1, -1):
        if is_continuation(data, at):
            continue
        if not may_split(data, at, automaton) and not _starts_special(data, at, size, texts, bounds, num_special):
            continue
        if not _is_crossed(data, at, size, texts, bounds, num_special):
            return at
    return 0


@compiled
def _starts_special(data, at, size, texts, bounds, num_special):
    for token in range(num_special):  # noqa: SIM110 - numba does not compile `any`
        if is_special(data, at, size, texts, bounds, token):
            return True
    return False


@compiled
def _is_crossed(data, at, size, texts, bounds, num_special):
    """Return whether a special token begins before data[at] and ends after it."""
    for token in range(num_special):
        for begin in range(at - (bounds[token + 1] - bounds[token]) + 1, at):
            if is_special(data, begin, size, texts, bounds, token):
                return True
    return False
