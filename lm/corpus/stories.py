"""Stories from the built-in grammar, stories.txt, each with its exact probability.

Their mean -log2 p is the entropy of the corpus, the floor under the loss of every model of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

from lm.corpus.grammar import Grammar

GRAMMAR_FILE = "stories.txt"


@dataclass(frozen=True)
class Story:
    """A story and -log2 of the probability with which the grammar writes it."""

    text: str
    bits: float


def stories(seed: int) -> Iterator[Story]:
    """Stories without end, independent of each other; the same seed gives the same ones everywhere.

    Only `Random.random` is used, whose sequence Python guarantees for a seed.
    """
    grammar, random = _grammar(), Random(seed).random
    while True:
        yield Story(*grammar.write(random))


def derivations(text: str) -> list[float]:
    """The bits of every derivation of `text`: one for a story, none for any other text."""
    return _grammar().derivations(text)


@cache
def _grammar() -> Grammar:
    return Grammar(files("lm.corpus").joinpath(GRAMMAR_FILE).read_text(encoding="utf-8"), GRAMMAR_FILE)
