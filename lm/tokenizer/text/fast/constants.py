"""Constants that several fast folders share between kernels and their callers."""

# Where the tables of an automaton are in the array that kernels take (see tables.py).
GROUPS = 0
TRANSITIONS = GROUPS + (1 << 16)
SPLITS = TRANSITIONS + 128 * 64
CLASSES = SPLITS + 64 * 64
CONTEXTS = CLASSES + 0x110000

# The groups of characters in a context (see lm.tokenizer.text.contexts); a pair of them has seven bits. The last one
# stands for a character after which a pre-token begins.
NUM_GROUPS = 11
BEFORE_START = NUM_GROUPS - 1

# The fields of the `state` array of a hash table of pre-tokens (see hash_table.py): the number of keys, the number of
# bytes stored for long keys, and the limits of both.
NUM_KEYS, NUM_KEY_BYTES, MAX_KEYS, MAX_KEY_BYTES, NUM_TABLE_FIELDS = range(5)

# Where CPython's strings have what, in bytes from their address: the bits that describe the characters,
# and the characters of ASCII and of other strings; and the position of the width in those bits.
STATE_AT, ASCII_AT, OTHER_AT, KIND_SHIFT = range(4)
