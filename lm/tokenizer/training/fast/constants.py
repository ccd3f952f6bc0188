"""Constants that the training kernels share with their callers."""

# The fields of the `state` array of merging.
(
    NUM_TOKENS,
    NUM_PAIRS,
    NUM_POSITIONS,
    HEAP_SIZE,
    MIN_COUNT,
    MAX_TOKENS,
    MAX_PAIRS,
    MAX_POSITIONS,
    MAX_HEAP_SIZE,
    NEEDED_PAIRS,
    NEEDED_POSITIONS,
    NUM_MERGE_FIELDS,
) = range(12)

# Why `learn_merges` returns.
DONE, NO_PAIRS_LEFT, NEEDS_SPACE = range(3)

# Cells that hold no symbol: between two pre-tokens, and inside a token.
BORDER, INSIDE = 0xFFFFFFFF, 0xFFFFFFFE
