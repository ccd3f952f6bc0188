r"""Where pre-tokens begin, as far as the neighboring characters say it.

Most pre-tokens end where it can be seen at once: with GPT-2's pattern, one begins at the space of `the cat`, and none
within `cat`, whatever the rest of the text is. In `he'll`, whether one begins at an `l` depends on more than its
neighbors. For contexts of five ASCII characters, this module finds out which of the three it is at the fourth one:

    >>> from lm.tokenizer.text.automaton import compile_automaton
    >>> table = context_table(compile_automaton("gpt2"))
    >>> table.look_up("the c") == BEGINS, table.look_up("e cat") == NONE, table.look_up("he'll") == UNKNOWN
    (True, True, True)

The analysis follows all ways in which the automaton can get through the five characters, from every state that it can
be in before them. On each way, at each character, the pre-token goes on, or a match has ended and the next one begins.
A way is impossible if the pre-token that goes on cannot match anymore, or if one that has ended could have been longer.
If a pre-token begins at the fourth character on all possible ways, or on none, the context says so.
"""

from dataclasses import dataclass

import numpy as np

from lm.tokenizer.text.automaton import DEAD, START, Automaton
from lm.tokenizer.text.fast.constants import BEFORE_START

NONE, BEGINS, UNKNOWN = 0, 1, 2

CONTEXT_LENGTH = 5
GROUP_BITS = 4
_POSITION = 3  # of the character that a context is about

_MAX_SETS = 1 << 12  # a pattern for which the analysis finds more is scanned more slowly


@dataclass(frozen=True)
class _Way:
    """One way through the characters so far.

    Attributes:
        state: The state of the pre-token that has begun last.
        ended: The states in which the ones before it would go on if they had not ended.
        begins: Whether a pre-token has begun at the position that the context is about.
    """

    state: int
    ended: frozenset[int]
    begins: bool


_Ways = frozenset[_Way]

# The next states and the matches of an automaton as lists, of which single numbers are read faster than of arrays.
_Tables = tuple[list[list[int]], list[list[bool]]]


@dataclass(frozen=True)
class ContextTable:
    """What contexts of ASCII characters say.

    Attributes:
        groups: The group of each byte, four bits; 0 for those that are not ASCII.
        results: NONE, BEGINS or UNKNOWN for each context. Its index is the groups of its characters one after the
            other, the first one in the lowest bits.
    """

    groups: np.ndarray
    results: np.ndarray

    def look_up(self, characters: str) -> int:
        index = 0
        for character in reversed(characters):
            index = index << GROUP_BITS | int(self.groups[ord(character)])
        return int(self.results[index])


def context_table(automaton: Automaton) -> ContextTable:
    """Analyze all contexts of ASCII characters."""
    groups, classes_of_group = _group(automaton)
    states = {*automaton.next_states[1:, 1:].ravel().tolist()} - {DEAD}
    everything = frozenset(_Way(state, frozenset(), False) for state in states)
    nothing: _Ways = frozenset()  # what is known of a context that has a character of group 0
    start = frozenset({_Way(START, frozenset(), False)})
    sets, numbers = [nothing, everything, start], {nothing: 0, everything: 1, start: 2}
    reached = np.array([1], np.uint16)  # for each context so far, the number of its set of ways
    tables = automaton.next_states.tolist(), automaton.matches.tolist()
    for position in range(CONTEXT_LENGTH):
        following = np.zeros((1 << GROUP_BITS, len(sets)), np.uint16)
        for number in np.flatnonzero(np.bincount(reached)).tolist():
            for group, classes in classes_of_group.items():
                ways = _advance(tables, sets[number], classes, position == _POSITION)
                if len(sets) == _MAX_SETS and ways not in numbers:
                    ways = nothing
                following[group, number] = numbers.setdefault(ways, len(sets))
                if numbers[ways] == len(sets):
                    sets.append(ways)
            following[BEFORE_START, number] = 2
        reached = following[:, reached].ravel()
    return ContextTable(groups, np.array([_result(ways) for ways in sets], np.uint8)[reached])


def _group(automaton: Automaton) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Divide the ASCII characters into groups by what the automaton does with them most of the time.

    Classes form a group if the beginning of a pattern, and each state that may repeat itself in ASCII text, do the same
    with them. So the letters of contractions are in the group of all other letters.

    Returns:
        The group of each byte, and the classes of each group.
    """
    next_states, matches = automaton.next_states, automaton.matches
    ascii_classes = automaton.classes[:128]
    states = np.arange(len(matches))
    repeats = (next_states[:, ascii_classes] == states[:, None]).any(axis=1)
    rows = [START, *states[repeats & (states != DEAD)]]
    keys = np.vstack([next_states[rows], matches[rows]])[:, ascii_classes].T
    _, group_of_character = np.unique(keys, axis=0, return_inverse=True)
    groups = np.zeros(256, np.uint8)
    groups[:128] = group_of_character.ravel() + 1
    groups[groups >= BEFORE_START] = 0
    return groups, {
        group: sorted({*ascii_classes[groups[:128] == group].tolist()}) for group in range(1, groups.max() + 1)
    }


def _advance(tables: _Tables, ways: _Ways, classes: list[int], is_position: bool) -> _Ways:
    """Continue ways with any character of the classes."""
    next_states, matches = tables
    result = set()
    for way in ways:
        for number in classes:
            if any(matches[state][number] for state in way.ended):
                continue
            ended = frozenset([next_states[state][number] for state in way.ended]) - {DEAD}
            state = next_states[way.state][number]
            if state != DEAD:
                result.add(_Way(state, ended, way.begins))
            if matches[way.state][number]:
                new = next_states[START][number]
                result.add(_Way(new, ended | ({state} - {DEAD}), way.begins or is_position))
    return frozenset(result)


def _result(ways: _Ways) -> int:
    found = {way.begins for way in ways}
    return UNKNOWN if len(found) != 1 else BEGINS if found == {True} else NONE
