"""The ids of pre-tokens, which all threads that encode look up and add to; encoder_kernels.py describes the arrays."""

from threading import Lock

import numpy as np

from lm.tokenizer.encoding.fast import library
from lm.tokenizer.encoding.fast.constants import MAX_IDS, NUM_CACHE_FIELDS, NUM_IDS
from lm.tokenizer.text.fast.build import Pinned
from lm.tokenizer.text.fast.chunks import PADDING
from lm.tokenizer.text.fast.constants import MAX_KEY_BYTES, MAX_KEYS, NUM_KEY_BYTES, NUM_KEYS
from lm.tokenizer.text.fast.memory import zeros

_FIRST_BITS, _LAST_BITS = 17, 19  # the table starts with 4 MB and grows to 16 MB
_MAX_IDS, _MAX_BYTES = 1 << 21, 1 << 22


class Cache:
    """A table of pre-tokens, at most half full so that probing stays short, and the ids and bytes it refers to.

    `arguments` is what the kernel that encodes takes.

    Args:
        bits: The logarithm of the number of slots.
        smaller: A closed cache whose content this one takes over.
    """

    def __init__(self, bits: int = _FIRST_BITS, smaller: "Cache | None" = None) -> None:
        self.bits = bits
        self.slots = zeros(4 << bits, np.uint64)
        self.state = np.zeros(NUM_CACHE_FIELDS, np.int64)
        self.state[MAX_KEYS], self.state[MAX_IDS], self.state[MAX_KEY_BYTES] = 1 << bits - 1, _MAX_IDS, _MAX_BYTES
        # The operating system provides memory only for the parts of an empty array that are written to.
        self.ids: np.ndarray = smaller.ids if smaller else np.empty(_MAX_IDS + 16, np.uint32)
        self.key_bytes: np.ndarray = smaller.key_bytes if smaller else np.empty(_MAX_BYTES + len(PADDING), np.uint8)
        self.arguments = Pinned(self.slots), bits, Pinned(self.ids), Pinned(self.key_bytes), Pinned(self.state)
        if smaller:
            # Threads that still read the smaller cache share these two arrays, but they add nothing any more.
            fields = [NUM_KEYS, NUM_IDS, NUM_KEY_BYTES]
            self.state[fields] = smaller.state[fields]
            library.load().copy_cache(smaller.slots, smaller.bits, self.slots, bits, self.key_bytes)

    def is_crowded(self) -> bool:
        """Return whether to replace this cache: half of its keys are used or, at the largest size, almost all."""
        state = self.state
        if self.bits < _LAST_BITS:
            return bool(2 * state[NUM_KEYS] > state[MAX_KEYS])
        fields = [NUM_KEYS, NUM_IDS, NUM_KEY_BYTES], [MAX_KEYS, MAX_IDS, MAX_KEY_BYTES]
        return bool((10 * state[fields[0]] > 9 * state[fields[1]]).any())

    def successor(self) -> "Cache":
        """Return a larger cache with the same content, or an empty one if this one has the largest size.

        Nothing is added to this cache from then on, but it can still be read.
        """
        if self.bits >= _LAST_BITS:
            return Cache(_LAST_BITS)
        library.load().close_cache(self.state)
        return Cache(self.bits + 1, self)


class SharedCache:
    """The cache that all threads use at present."""

    def __init__(self) -> None:
        self._current = Cache()
        self._lock = Lock()

    def get(self) -> Cache:
        """Return the cache, after replacing it if it is crowded and no other thread is about to do that."""
        if self._current.is_crowded() and self._lock.acquire(blocking=False):
            try:
                if self._current.is_crowded():
                    self._current = self._current.successor()
            finally:
                self._lock.release()
        return self._current
