"""Constants that several fast folders share between kernels and their callers."""

# The classes of code points; all others have class 0.
LETTER, NUMBER, SPACE = 1, 2, 3

# The fields of the `state` array of a hash table of pre-tokens (see hash_table.py): the number of keys, the number of
# bytes stored for long keys, and the limits of both.
NUM_KEYS, NUM_KEY_BYTES, MAX_KEYS, MAX_KEY_BYTES, NUM_TABLE_FIELDS = range(5)

# Where CPython's strings have what, in bytes from their address: the bits that describe the characters,
# and the characters of ASCII and of other strings; and the position of the width in those bits.
STATE_AT, ASCII_AT, OTHER_AT, KIND_SHIFT = range(4)
