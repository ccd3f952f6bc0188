import difflib

from lm.corpus.grammar_reader import read
from lm.corpus.stories import stories, story_grammar
from lm.evaluation.minimal_pairs import PAIR_KINDS, minimal_pairs


def test_pairs_by_hand(small_grammar):
    text = "Once long ago, there was Bob. Bob had a kite.\n\nHe met Ann, and she liked the red kite."
    pairs = minimal_pairs(small_grammar, text, read(small_grammar, text), 10, seed=1)
    names = {pair.wrong for pair in pairs if pair.kind == "later_name"}
    assert len(names) == 1 and names <= {text.replace("Bob had", f"{name} had") for name in ("Ann", "Eve")}
    assert {pair.wrong for pair in pairs if pair.kind == "attribute"} == {
        text.replace("He met", "She met"),
        text.replace("she liked", "he liked"),
        text.replace("red kite", "blue kite"),
    }
    objects = {pair.wrong for pair in pairs if pair.kind == "later_other"}
    assert len(objects) == 1 and objects <= {text.replace("red kite", f"red {toy}") for toy in ("ball", "orange")}


def test_pairs_of_the_built_in_stories_differ_in_one_place_that_the_grammar_refuses():
    grammar = story_grammar()
    source = stories(3)
    for seed in range(5):
        text = next(source).text
        pairs = minimal_pairs(grammar, text, read(grammar, text), 2, seed)
        assert {pair.kind for pair in pairs} == set(PAIR_KINDS)
        assert pairs == minimal_pairs(grammar, text, read(grammar, text), 2, seed)
        for pair in pairs:
            assert not grammar.derivations(pair.wrong)
            operations = difflib.SequenceMatcher(None, text, pair.wrong, False).get_opcodes()
            changed = [operation for operation in operations if operation[0] != "equal"]
            assert changed[-1][2] - changed[0][1] < 60
