"""What kernels and their callers both know: the fields of the `state` arrays, codes, and values with a meaning."""

# The classes of code points; others are 0.
LETTER, NUMBER, SPACE = 1, 2, 3

# The state of a table of pre-tokens in counting.
NUM_KNOWN, NUM_KEPT, MAX_KNOWN, MAX_KEPT, NUM_COUNT_FIELDS = range(5)

# Of the table of known pre-tokens in encoding.
NUM_IDS, MAX_IDS, NUM_ENCODE_FIELDS = range(4, 7)

# Of merging.
(
    NUM_TOKENS,
    NUM_PAIRS,
    NUM_PLACES,
    HEAP_SIZE,
    FLOOR,
    MAX_TOKENS,
    MAX_PAIRS,
    MAX_PLACES,
    MAX_HEAP,
    NEEDED_PAIRS,
    NEEDED_PLACES,
    NUM_MERGE_FIELDS,
) = range(12)

# What `learn` comes back for.
DONE, NONE_LEFT, NEEDS_ROOM = range(3)

# In the cells of merging: between pre-tokens, and within a token.
BORDER, GONE = 0xFFFFFFFF, 0xFFFFFFFE

# A symbol in the table of pairs of encoding, and what stands for the product of a pair that makes none.
SYMBOL_BITS = 21
NO_PAIR = 0xFFFFFFFF
