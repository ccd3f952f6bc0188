import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        *("reference", "tokenizer", "training.merges", "text.byte_alphabet", "text.categories"),
        *("text.pretokenization", "text.alphabet", "text.syntax", "text.automaton", "text.contexts"),
    ],
)
def test_the_examples_in_docstrings_are_correct(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"lm.tokenizer.{name}"))
    assert results.attempted > 0 and results.failed == 0
