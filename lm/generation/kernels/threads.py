"""How threads share a step: who computes what, and where they wait for each other."""

from numba import types

from lm.tokenizer.text.fast.intrinsics import compiled, fetch_add, inlined, load_acquire

_MAX_SPINS = 100_000  # checks of a counter before a waiting thread yields its processor: about 100 microseconds
_MAX_YIELDS = 120_000  # checks before a waiting worker sleeps: a few milliseconds
_MAX_SLEEP = 10_000  # microseconds

_yield_processor = types.ExternalFunction("sched_yield", types.int32())
_sleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@inlined
def first_of(thread, num_threads, count):
    """The first of `count` items that a thread computes; the last one is before the first of the next thread."""
    return count * thread // num_threads


@compiled
def barrier(arrived, barriers, num_threads):
    """Wait until every thread has reached this barrier; return the number of barriers passed, including this one.

    `arrived` points to the number of arrivals of all threads at all barriers.
    """
    barriers += 1
    fetch_add(arrived, 0)
    num_pauses = 0
    while load_acquire(arrived, 0) < barriers * num_threads:
        num_pauses = _pause(num_pauses)
    return barriers


@compiled
def wait_for_more(commands, steps):
    """Wait until the number that `commands` points to is no longer `steps`; return it."""
    num_pauses = 0
    while load_acquire(commands, 0) == steps:
        num_pauses = _pause(num_pauses)
        if num_pauses > _MAX_YIELDS:  # no text is being generated: check less and less often
            _sleep(min(num_pauses - _MAX_YIELDS, _MAX_SLEEP))
    return load_acquire(commands, 0)


@compiled
def _pause(num_pauses):
    """Wait for a moment and return the number of pauses so far; after `_MAX_SPINS`, let other threads run meanwhile."""
    if num_pauses > _MAX_SPINS:
        _yield_processor()
    return num_pauses + 1
