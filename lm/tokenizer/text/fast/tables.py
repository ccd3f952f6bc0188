"""The tables of an automaton as one array for kernels.

at           content
GROUPS       at byte | next byte << 8: their groups, as group | group of the next byte << 4
TRANSITIONS  at state << 6 | class: the next state << 1 | whether a match ends before the character of this class
SPLITS       at class << 6 | class: whether a text may be split between two characters of these classes
CLASSES      the class of each code point
CONTEXTS     the result of each context, see `lm.tokenizer.text.contexts`
"""

from functools import cache

import numpy as np

from lm.tokenizer.text.automaton import MAX_CLASSES, MAX_STATES, compile_automaton
from lm.tokenizer.text.contexts import context_table
from lm.tokenizer.text.fast.constants import CLASSES, CONTEXTS, GROUPS, SPLITS, TRANSITIONS


@cache
def automaton_tables(pattern: str) -> np.ndarray:
    """Return the tables of a pattern.

    Raises:
        Unsupported: The pattern cannot be compiled.
    """
    automaton = compile_automaton(pattern)
    contexts = context_table(automaton)
    tables = np.zeros(CONTEXTS + len(contexts.results), np.uint8)
    tables[GROUPS:TRANSITIONS] = (contexts.groups[:, None] << 4 | contexts.groups).ravel()
    transitions = np.zeros((MAX_STATES, MAX_CLASSES), np.uint8)
    num_states, num_classes = automaton.matches.shape
    transitions[:num_states, :num_classes] = automaton.next_states << 1 | automaton.matches
    tables[TRANSITIONS:SPLITS] = transitions.ravel()
    splits = np.zeros((MAX_CLASSES, MAX_CLASSES), np.uint8)
    splits[:num_classes, :num_classes] = automaton.splits
    tables[SPLITS:CLASSES] = splits.ravel()
    tables[CLASSES:CONTEXTS] = automaton.classes
    tables[CONTEXTS:] = contexts.results
    tables.flags.writeable = False
    return tables
