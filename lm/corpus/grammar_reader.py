"""Read a text as its grammar would have written it: the exact probability and the origin of every character.

All derivations that fit the text so far are followed at the same time, each with its probability. The probability of a
character, given those before it, is the share of their total probability that is left after reading it. So, unlike
`Grammar.derivations`, `read` also tells where a text leaves the grammar, and what the grammar expected there.
"""

from collections import defaultdict
from dataclasses import dataclass
from math import log2
from typing import NamedTuple

from lm.corpus.grammar import Continuation, Grammar, precede
from lm.corpus.grammar_parser import Rule, Slot


class Part(NamedTuple):
    """The characters `start` to `stop` of a text, which come from one item of the grammar.

    `slot` is None for wording, which is the text of a rule. `is_first` tells whether the slot is the first mention of
    its variable.
    """

    start: int
    stop: int
    slot: Slot | None
    is_first: bool


@dataclass(frozen=True)
class Reading:
    """What a text says by the grammar.

    Attributes:
        bits: -log2 of the probability of each character, given those before it. Their sum is -log2 p of the text. It
            ends at the first mistake.
        parts: The parts of the text, in order and without gaps. With a mistake, those of the most probable derivation
            that fits the text before it; the last one is then what the grammar expected there. If the text goes on
            after its end, the last one is that of the complete text.
        mistake: The position of the first character that does not fit any derivation, or None. It is the length of
            the text if the text ends too early.
    """

    bits: list[float]
    parts: list[Part]
    mistake: int | None


class _State(NamedTuple):
    """One derivation of the text so far, which is within `literal` or at its end."""

    literal: str
    start: int  # where the literal began
    slot: Slot | None
    is_first: bool
    rest: Continuation | None  # what follows the literal
    words: dict[str, int]  # the index of each variable's word
    probability: float
    parts: "_Parts | None"  # before the literal

    @property
    def stop(self) -> int:
        return self.start + len(self.literal)


_Parts = tuple[Part, "_Parts | None"]  # a linked list, the last part first


def read(grammar: Grammar, text: str) -> Reading:
    """Read `text` by the grammar, up to its end or its first mistake.

    Example:
        >>> grammar = Grammar('''
        ... words hero | he
        ...     Ann | she
        ...     Bob, Dan | he
        ... rule story
        ...     {hero} [sat|ran]. {He} smiled.
        ... ''', "example")
        >>> reading = read(grammar, "Bob ran. She smiled.")
        >>> [round(bits, 2) for bits in reading.bits]  # B: one of three names; r: one of two verbs
        [1.58, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        >>> reading.mistake, reading.parts[-1].slot.phrase
        (9, 'He')
    """
    bits: list[float] = []
    position = 0
    total = 1.0  # probability of the states
    states = [_State("", 0, None, False, (grammar.start, None), {}, 1.0, None)]
    while position < len(text):
        fitting: list[_State] = []
        for state in states:
            if position == state.stop:
                fitting += _next_states(grammar, state, text[position])
            elif state.literal[position - state.start] == text[position]:
                fitting.append(state)
        if not fitting:
            break
        probability = sum(state.probability for state in fitting)
        bits.append(log2(total / probability))
        position += 1
        states, total = fitting, probability
        if len(states) == 1:  # nothing is left to decide before the end of the literal
            states, total = [states[0]._replace(probability=1.0)], 1.0  # the numbers never become too small
            expected = states[0].literal[position - states[0].start :]
            if text.startswith(expected, position):
                bits += [0.0] * len(expected)
                position += len(expected)
    ended = [state for state in states if position == state.stop and state.rest is None]
    if ended and position == len(text):
        return Reading(bits, _parts(ended[0]), None)
    expected_states = []
    for state in states:
        expected_states += _next_states(grammar, state) if position == state.stop and state.rest else [state]
    return Reading(bits, _parts(_most_expected(expected_states)), position)


def _most_expected(states: list[_State]) -> _State:
    """The most probable state of the most probable mention: a slot has a state for each word that it may take."""

    def mention(state: _State) -> tuple[str, bool, bool] | None:
        return (state.slot.variable, state.slot.repeats_word, state.is_first) if state.slot else None

    probabilities: dict[tuple[str, bool, bool] | None, float] = defaultdict(float)
    for state in states:
        probabilities[mention(state)] += state.probability
    expected = max(probabilities, key=lambda key: probabilities[key])
    return max((state for state in states if mention(state) == expected), key=lambda state: state.probability)


def _next_states(grammar: Grammar, state: _State, character: str = "") -> list[_State]:
    """The states at the beginnings of the literals that may follow a complete one and start with `character`."""
    start, parts = state.stop, _append(state)
    states: list[_State] = []
    pending = [(state.rest, state.words, state.probability)]
    while pending:
        rest, words, probability = pending.pop()
        if rest is None:
            continue
        item, rest = rest
        if isinstance(item, str):
            if item.startswith(character):
                states.append(_State(item, start, None, False, rest, words, probability, parts))
        elif isinstance(item, Rule):
            probability /= len(item.alternatives)
            for _, alternative in item.alternatives:
                if not isinstance(alternative[0], str) or alternative[0].startswith(character):
                    pending.append((precede(alternative, rest), words, probability))
        elif item.variable in words:
            text = item.texts[words[item.variable]]
            if text.startswith(character):
                states.append(_State(text, start, item, False, rest, words, probability, parts))
        else:
            free = grammar.free_words(item.variable, words)
            for word in free:
                if (text := item.texts[word]).startswith(character):
                    bound = words | {item.variable: word}
                    states.append(_State(text, start, item, True, rest, bound, probability / len(free), parts))
    return states


def _append(state: _State) -> _Parts | None:
    """The parts of the text up to and including the state's literal."""
    if not state.literal:
        return state.parts
    return Part(state.start, state.stop, state.slot, state.is_first), state.parts


def _parts(state: _State) -> list[Part]:
    parts: list[Part] = []
    remaining = _append(state)
    while remaining:
        part, remaining = remaining
        parts.append(part)
    return parts[::-1]
