import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["byte_alphabet", "pretokenization", "tokenizer", "training"])
def test_the_examples_in_docstrings_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"lm.tokenizer.{name}"))
    assert results.attempted > 0 and results.failed == 0
