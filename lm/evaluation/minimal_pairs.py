"""Minimal pairs: a story, and the same story with one word replaced by a wrong one.

A model that has learned what the word depends on gives the true story the higher probability (Warstadt et al. 2020,
BLiMP). The grammar makes the pairs, so they need no judge, and the changed story is known to be wrong.
"""

from random import Random
from typing import NamedTuple

from lm.corpus.grammar import Grammar
from lm.corpus.grammar_reader import Reading, read
from lm.evaluation.kinds import Kind, kind

PAIR_KINDS: tuple[Kind, ...] = ("later_name", "later_other", "attribute")

_ATTEMPTS = 4  # words tried per wanted pair, because the grammar may also derive the changed story


class MinimalPair(NamedTuple):
    """A wrong variant of a story, and the kind of the word that was replaced."""

    kind: Kind
    wrong: str


def minimal_pairs(grammar: Grammar, text: str, reading: Reading, pairs_per_kind: int, seed: int) -> list[MinimalPair]:
    """Replace later names, later mentions of other things, and attributes such as pronouns, one at a time.

    Args:
        grammar: The grammar.
        text: A story.
        reading: What the grammar says about it.
        pairs_per_kind: The maximum number of pairs of each kind; a story may not have as many.
        seed: Determines which words are replaced by which others.

    Example: "Ann sat. She smiled." may become "Ann sat. He smiled."
    """
    random = Random(seed)
    pairs: list[MinimalPair] = []
    for pair_kind in PAIR_KINDS:
        parts = [part for part in reading.parts if kind(part) == pair_kind]
        random.shuffle(parts)
        found = 0
        for part in parts[: pairs_per_kind * _ATTEMPTS]:
            if found == pairs_per_kind:
                break
            true = text[part.start : part.stop]
            others = sorted({other for other in part.slot.texts if other != true}) if part.slot else []
            if not others:
                continue
            wrong = text[: part.start] + random.choice(others) + text[part.stop :]
            if read(grammar, wrong).mistake is not None:
                pairs.append(MinimalPair(pair_kind, wrong))
                found += 1
    return pairs
