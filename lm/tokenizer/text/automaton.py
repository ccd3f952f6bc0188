r"""Patterns compiled to deterministic automata, which find the same pre-tokens as the regular expressions.

A backtracking matcher, such as `regex`, tries alternatives in order and takes the first way in which the whole pattern
matches. An automaton tries all ways at once: its state is the list of the places in the pattern that have been reached,
the preferred ones first (Cox 2010, https://swtch.com/~rsc/regexp/regexp2.html). When one of them reaches the end of the
pattern, the places after it are dropped, and the match is what the matcher would have found, unless a place before it
still reaches the end.

A state moves on with the class of a character. The characters of a class are those that are in the same sets of the
pattern. Since a look-ahead needs the next character, a match is reported when the character after it is read:

    >>> automaton = compile_automaton(r"a+(?!b)|[^a]|a")
    >>> automaton.match_length("aaab"), automaton.match_length("aaac"), automaton.match_length("b")
    (2, 3, 1)

A possessive repetition is compiled as a greedy one, which is only done where they match the same: if what follows it
cannot begin with a character that it could give back, or may be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from lm.tokenizer.text.alphabet import begins, expand
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.syntax import Character, Choice, LookAhead, Node, Repeat, Series, Unsupported, parse

MAX_CLASSES, MAX_STATES = 64, 128  # what the tables of the kernels have space for

_MAX_PLACES, _MAX_LISTS = 2000, 1000  # while compiling

END = 0  # the class of the end of the text
DEAD, START = 0, 1  # states: no place is left; the beginning of the pattern


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over classes of characters.

    Attributes:
        classes: The class of every code point, uint8.
        next_states: The next state, by state and class.
        matches: Whether a match ends before the character that is read, by state and class of that character.
    """

    classes: np.ndarray
    next_states: np.ndarray
    matches: np.ndarray

    @property
    def num_classes(self) -> int:
        return self.matches.shape[1]

    def match_length(self, text: str, begin: int = 0) -> int:
        """Return the length of the match at text[begin:]."""
        length = 0
        state = START
        for at in range(begin, len(text) + 1):
            character = self.classes[ord(text[at])] if at < len(text) else END
            if self.matches[state, character]:
                length = at - begin
            state = self.next_states[state, character]
            if state == DEAD:
                break
        return length

    @cached_property
    def splits(self) -> np.ndarray:
        """Whether a text may be split between two characters, whatever the rest of it is, by their classes.

        It may if every state in which the first character leaves the automaton does the same at the second one as at
        the end of the text: it goes no further, and a match ends there or not. Then the text before has the same
        pre-tokens without the text after it. As they cover all of it, a pre-token begins with the second character.
        """
        allowed = np.zeros((self.num_classes, self.num_classes), bool)
        for before in range(1, self.num_classes):
            states = sorted({*self.next_states[1:, before].tolist()} - {DEAD})
            ends = (self.next_states[states] == DEAD) & (self.matches[states] == self.matches[states, END][:, None])
            allowed[before, 1:] = ends[:, 1:].all(axis=0)
        return allowed


@cache
def compile_automaton(pattern: str) -> Automaton:
    """Compile a named pattern or a valid regular expression.

    Raises:
        Unsupported: The automaton would not find the same pre-tokens, or would be too large.
    """
    program = _Program(parse(PATTERNS.get(pattern, pattern)))
    class_of_range, members = _divide(program.sets())
    if len(members) > MAX_CLASSES:
        raise Unsupported(f"more than {MAX_CLASSES - 1} classes of characters")
    next_states, matches = _minimize(*program.determinize(members))
    if len(matches) > MAX_STATES:
        raise Unsupported(f"more than {MAX_STATES - 1} states")
    _require_total(next_states, matches)
    return Automaton(expand(class_of_range), next_states, matches)


@cache
def find_obstacle(pattern: str) -> str | None:
    """Return the part of a pattern for which it cannot be compiled, or None if it can be compiled."""
    try:
        compile_automaton(pattern)
    except Unsupported as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Read:
    """A place where a character of a set is read."""

    members: int
    following: int


@dataclass(frozen=True)
class _Look:
    """A place that is left if the next character, or the end of the text, is in a set."""

    members: int
    following: int


@dataclass
class _Fork:
    """A place that is left in several directions, the preferred one first."""

    following: list[int]


class _Program:
    """The places of a pattern. Place 0 is the end of the pattern."""

    def __init__(self, tree: Node) -> None:
        self._places: list[_Read | _Look | _Fork] = [_Fork([])]
        self._possessive: list[tuple[int, int]] = []  # the set that is repeated, and the place after the repetition
        self._start = self._add(tree, 0)
        for members, after in self._possessive:
            if not self._gives_nothing_back(members, after):
                raise Unsupported("a possessive repetition of which the rest of the pattern could use a part")

    def sets(self) -> list[int]:
        return list(dict.fromkeys(place.members for place in self._places if not isinstance(place, _Fork)))

    def determinize(self, members: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tables of the automaton. `members` is a range of characters of each class, as a set."""
        accepted = [
            [isinstance(place, _Fork) or bool(place.members & range_) for range_ in members] for place in self._places
        ]
        numbers: dict[tuple[int, ...], int] = {(): DEAD, (self._start,): START}
        states = list(numbers)
        next_states, matches = [[DEAD] * len(members)], [[False] * len(members)]
        for state in _iterate_growing(states, first=START):
            next_states.append([])
            matches.append([])
            for number in range(len(members)):
                following, is_match = self._step(state, number, accepted)
                if following not in numbers:
                    numbers[following] = len(states)
                    states.append(following)
                    if len(states) > _MAX_LISTS:
                        raise Unsupported("too many states")
                next_states[-1].append(DEAD if number == END else numbers[following])
                matches[-1].append(is_match)
        return np.array(next_states), np.array(matches)

    def _step(self, state: tuple[int, ...], character: int, accepted: list[list[bool]]) -> tuple[tuple[int, ...], bool]:
        """Return the places after a character of a class has been read, and whether a match ends before it."""
        reached: dict[int, None] = {}
        seen = set()
        pending = list(reversed(state))
        while pending:
            number = pending.pop()
            if number == 0:
                return tuple(reached), True
            if number in seen or not accepted[number][character]:
                continue
            seen.add(number)
            place = self._places[number]
            match place:
                case _Fork():
                    pending += reversed(place.following)
                case _Look():
                    pending.append(place.following)
                case _Read():
                    reached[place.following] = None
        return tuple(reached), False

    def _add(self, node: Node, following: int) -> int:
        """Add the places of a part of the pattern, which is followed by a place; return the first one."""
        match node:
            case Character(members):
                return self._new(_Read(members, following))
            case LookAhead(members):
                return self._new(_Look(members, following))
            case Series(parts):
                for part in reversed(parts):
                    following = self._add(part, following)
                return following
            case Choice(options):
                return self._new(_Fork([self._add(option, following) for option in options]))
            case Repeat(body, least, most, kind):
                return self._add_repeat(body, least, most, kind, following)

    def _add_repeat(self, body: Node, least: int, most: int | None, kind: str, following: int) -> int:
        if _may_be_empty(body):
            raise Unsupported("the repetition of something that may be empty")
        if kind == "possessive":
            if not isinstance(body, Character):
                raise Unsupported("a possessive repetition of more than one character")
            self._possessive.append((body.members, following))
        first = following
        if most is None:
            fork = _Fork([])
            first = self._new(fork)
            fork.following = [self._add(body, first), following]
            if kind == "lazy":
                fork.following.reverse()
        else:
            for _ in range(most - least):
                ways = [self._add(body, first), following]
                first = self._new(_Fork(ways[::-1] if kind == "lazy" else ways))
        for _ in range(least):
            first = self._add(body, first)
        return first

    def _new(self, place: _Read | _Look | _Fork) -> int:
        if len(self._places) >= _MAX_PLACES:
            raise Unsupported("too long a pattern")
        self._places.append(place)
        return len(self._places) - 1

    def _gives_nothing_back(self, members: int, after: int) -> bool:
        """Return whether what begins at a place may be empty, or cannot begin with a character of the set."""
        pending, seen = [after], set()
        begins_with_member = False
        while pending:
            number = pending.pop()
            if number == 0:
                return True
            if number in seen:
                continue
            seen.add(number)
            place = self._places[number]
            if isinstance(place, _Fork):
                pending += place.following
            elif place.members & members:
                begins_with_member = True
        return not begins_with_member


def _iterate_growing(items: list[tuple[int, ...]], first: int) -> Iterator[tuple[int, ...]]:
    """Yield the items of a list that grows in the meantime."""
    at = first
    while at < len(items):
        yield items[at]
        at += 1


def _may_be_empty(node: Node) -> bool:
    match node:
        case Character():
            return False
        case LookAhead():
            return True
        case Series(parts):
            return all(map(_may_be_empty, parts))
        case Choice(options):
            return any(map(_may_be_empty, options))
        case Repeat(body, least):
            return least == 0 or _may_be_empty(body)


def _divide(sets: list[int]) -> tuple[np.ndarray, list[int]]:
    """Divide the characters into classes: two of the same class are in the same sets.

    Returns:
        The class of each range of the alphabet, and for each class one of its ranges, as a set.
    """
    num_ranges = len(begins()) + 1  # the last one is the end of the text
    columns = np.zeros((len(sets), num_ranges), np.uint8)
    for number, members in enumerate(sets):
        packed = np.frombuffer(members.to_bytes(num_ranges // 8 + 1, "little"), np.uint8)
        columns[number] = np.unpackbits(packed, bitorder="little")[:num_ranges]
    keys = np.ascontiguousarray(np.packbits(columns, axis=0).T)
    _, firsts, class_of_range = np.unique(keys[:-1], axis=0, return_index=True, return_inverse=True)
    members_of_class = [1 << (num_ranges - 1), *(1 << int(first) for first in firsts)]
    return (class_of_range.ravel() + 1).astype(np.uint8), members_of_class


def _minimize(next_states: np.ndarray, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unite the states that do the same from then on (Moore 1956)."""
    groups = np.zeros(len(matches), int)
    while True:
        # A state that moves nowhere and matches nothing is like the dead one, which must keep the number 0.
        keys = np.column_stack([groups, matches, groups[next_states]])
        _, firsts, refined = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        refined = refined.ravel()
        if len(firsts) == groups.max() + 1:
            break
        groups = refined
    order = np.argsort(firsts)  # by their first state, so that the dead state and the start keep their numbers
    numbers = np.argsort(order)[refined]
    return numbers[next_states[firsts[order]]], matches[firsts[order]]


def _require_total(next_states: np.ndarray, matches: np.ndarray) -> None:
    """Check that at any place of any text, the pattern matches at least one character."""
    if matches[START].any():
        raise Unsupported("a pattern that may match the empty text")
    pending = {START}  # states before the first match
    seen: set[int] = set()
    while pending:
        state = pending.pop()
        seen.add(state)
        first = 1 if state == START else END
        following = {
            int(next_states[state, number]) for number in range(first, len(matches[0])) if not matches[state, number]
        }
        if DEAD in following:
            raise Unsupported("a pattern that does not match every text")
        pending |= following - seen
