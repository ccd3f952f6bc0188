"""Constants that the encoding kernels share with their callers."""

from lm.tokenizer.text.fast.constants import NUM_TABLE_FIELDS

# More fields of the `state` array of the cache of pre-tokens: the number of stored ids, its limit, and the lock.
NUM_IDS, MAX_IDS, LOCK, NUM_CACHE_FIELDS = range(NUM_TABLE_FIELDS, NUM_TABLE_FIELDS + 4)

# The bits of a symbol in the table of pairs, and the value that says that a pair cannot be merged.
SYMBOL_BITS = 21
NO_MERGE = 0xFFFFFFFF
