"""Constants that the encoding kernels share with their callers."""

from lm.tokenizer.text.fast.constants import NUM_TABLE_FIELDS

# More fields of the `state` array of the cache of pre-tokens: the number of stored ids, its limit, and the lock.
NUM_IDS, MAX_IDS, LOCK, NUM_CACHE_FIELDS = range(NUM_TABLE_FIELDS, NUM_TABLE_FIELDS + 4)

# The bits of a symbol in the table of pairs, and the value that says that a pair cannot be merged.
SYMBOL_BITS = 21
NO_MERGE = 0xFFFFFFFF

# The kernels work on one block of text after the other, of this many bytes or slightly more.
BLOCK_SIZE = 2048

# The longest pre-token that is cached. Up to NUM_LANES of these are merged at the same time, in LANE_SIZE numbers each.
MAX_CACHED_LENGTH = 62
NUM_LANES, LANE_SIZE = 16, 128
