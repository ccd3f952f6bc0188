"""What a kernel is told: an array of int64. Its address is the only argument that OpenMP passes on to every thread.

These are the indices of its numbers.
"""

NEXT_THREAD = 0  # how many threads have begun; a thread's number determines its part of the scratch memory
NEXT_HEAD = 1  # how many heads have been taken by a thread
NUM_HEADS = 2  # in all sequences together
HEADS = 3  # per sequence
LENGTH = 4
D_HEAD = 5
DTYPE = 6
SCRATCH = 7  # the address of the scratch memory, and the bytes per thread
SCRATCH_BYTES = 8
LOG_SUM_EXP = 9  # the address of L, (B, H, T) in float32
STARTS = 10  # the address of document_starts, (B, T) in int64, or 0
QUERIES = 11  # a tensor takes four numbers: its address, and the bytes from one sequence, head and row to the next
KEYS = 15
VALUES = 19
OUTPUT = 23
OUTPUT_GRADIENT = 27
QUERIES_GRADIENT = 31
KEYS_GRADIENT = 35
VALUES_GRADIENT = 39
SIZE = 43

FLOAT32, BFLOAT16 = 0, 1  # the values of DTYPE

TILE = 16  # queries in a tile, and the numbers of a vector
COLUMNS = 512  # keys in a tile: the scores of 16 queries take 32 kB
SCORES_STRIDE = 4 * (COLUMNS + TILE)  # bytes; rows a power of two apart would compete for the same lines of a cache


def scratch_bytes(length: int, d: int) -> dict[str, int]:
    """The bytes of scratch memory that each kernel needs per thread: copies of a head's rows, and what a tile holds."""
    padded, row = -(-length // TILE) * TILE, 4 * -(-d // TILE) * TILE
    scores = TILE * SCORES_STRIDE
    return {
        "forward": 3 * padded * row + scores + TILE * row + 8 * TILE,  # Q, K, V; S; O; l and m
        "backward": 7 * padded * row + TILE * row + 2 * scores + 4 * padded,  # Q, K twice, V, dO, dK, dV; dQ; P, dS; D
    }
