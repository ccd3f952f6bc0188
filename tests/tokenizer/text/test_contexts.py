import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer import reference
from lm.tokenizer.text.automaton import compile_automaton
from lm.tokenizer.text.contexts import BEGINS, NONE, UNKNOWN, context_table
from lm.tokenizer.text.patterns import PATTERNS

TABLES = {name: context_table(compile_automaton(name)) for name in PATTERNS}
ASCII = st.text(st.sampled_from("abAB12 \n\r\t!.'/\"sdmtrevlLS"), min_size=2, max_size=30)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=400)
@given(text=ASCII)
def test_contexts_say_nothing_wrong(pattern: str, text: str) -> None:
    pre_tokens = reference.pre_tokenize(text, pattern=PATTERNS[pattern])
    starts = {0, *itertools.accumulate(map(len, pre_tokens))}
    for position in range(3, len(text) - 1):
        result = TABLES[pattern].look_up(text[position - 3 : position + 2])
        assert result in (UNKNOWN, BEGINS if position in starts else NONE), text[position - 3 : position + 2]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_most_contexts_of_a_text_are_known(pattern: str) -> None:
    text = 'Once upon a time, there were 3 bears. "Who ate my soup?" said the little bear.\n\nThe end (of it).\n'
    results = [TABLES[pattern].look_up(text[at - 3 : at + 2]) for at in range(3, len(text) - 1)]
    assert results.count(UNKNOWN) <= 2


def test_contexts_by_hand() -> None:
    table = TABLES["gpt2"]
    assert [table.look_up(text) for text in ("the c", "r com", "you'l", "u'll ", "  1 a")] == [1, 0, 1, 2, 1]
    assert TABLES["gpt4"].look_up("a 123") == NONE and TABLES["qwen2"].look_up("a 123") == BEGINS
    assert TABLES["gpt4o"].look_up("tinOn") == BEGINS and TABLES["gpt4"].look_up("tinOn") == NONE
    assert set(table.groups[128:].tolist()) == {0}


def test_pairs_of_results() -> None:
    table = TABLES["gpt2"]
    pairs = table.pair_up()
    for text in ("the ca", "you'll", "  1 a\n", "a.\n\n 'é"[:6]):
        result = pairs[tuple(table.groups[ord(character)] for character in reversed(text))]
        assert result == table.look_up(text[:5]) | table.look_up(text[1:]) << 2
