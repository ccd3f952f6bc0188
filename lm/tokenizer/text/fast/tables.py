"""The tables of an automaton as one array for kernels.

at           content
GROUPS       at byte | next byte << 8: their pair of groups, as group + NUM_GROUPS * group of the next byte
TRANSITIONS  at state << 6 | class: the next state << 1 | whether a match ends before the character of this class
SPLITS       at class << 6 | class: whether a text may be split between two characters of these classes
CLASSES      the class of each code point
CONTEXTS     at pair | next pair << 7 | last pair << 14: the results for the two characters before the last two,
             see `ContextTable.pair_up`
"""

from functools import cache

import numpy as np

from lm.tokenizer.text.automaton import MAX_CLASSES, MAX_STATES, compile_automaton
from lm.tokenizer.text.contexts import context_table
from lm.tokenizer.text.fast.constants import CLASSES, CONTEXTS, GROUPS, NUM_GROUPS, SPLITS, TRANSITIONS
from lm.tokenizer.text.fast.memory import zeros


@cache
def automaton_tables(pattern: str) -> np.ndarray:
    """Return the tables of a pattern.

    Raises:
        Unsupported: The pattern cannot be compiled.
    """
    automaton = compile_automaton(pattern)
    contexts = context_table(automaton)
    tables = zeros(CONTEXTS + (1 << 3 * 7), np.uint8)
    tables[GROUPS:TRANSITIONS] = (contexts.groups[:, np.newaxis] * NUM_GROUPS + contexts.groups).ravel()
    transitions = np.zeros((MAX_STATES, MAX_CLASSES), np.uint8)
    num_states, num_classes = automaton.matches.shape
    transitions[:num_states, :num_classes] = automaton.next_states << 1 | automaton.matches
    tables[TRANSITIONS:SPLITS] = transitions.ravel()
    splits = np.zeros((MAX_CLASSES, MAX_CLASSES), np.uint8)
    splits[:num_classes, :num_classes] = automaton.splits
    tables[SPLITS:CLASSES] = splits.ravel()
    tables[CLASSES:CONTEXTS] = automaton.classes
    num_pairs = NUM_GROUPS**2
    pairs = tables[CONTEXTS:].reshape(3 * [1 << 7])[:num_pairs, :num_pairs, :num_pairs]
    pairs[...] = contexts.pair_up().reshape(3 * [num_pairs])
    tables.flags.writeable = False
    return tables
