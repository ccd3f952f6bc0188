"""Stories generated from the built-in grammar, stories.txt, each with its exact probability.

The mean of -log2 p over the stories is the entropy of the corpus, which is a lower bound on the loss of any model.
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
    """A story and its information content in bits, -log2 p."""

    text: str
    bits: float


def stories(seed: int) -> Iterator[Story]:
    """Generate an endless sequence of independent stories, which is the same on every machine for a given seed.

    This holds because only `Random.random` is used, whose sequence Python guarantees for a given seed.
    """
    grammar, random = story_grammar(), Random(seed).random
    while True:
        yield Story(*grammar.sample(random))


@cache
def story_grammar() -> Grammar:
    """Return the grammar of stories.txt, which is read and checked at the first call."""
    return Grammar(files("lm.corpus").joinpath(GRAMMAR_FILE).read_text(encoding="utf-8"), GRAMMAR_FILE)
