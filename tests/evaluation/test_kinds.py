import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lm.evaluation.kinds
from lm.corpus.config import END_OF_TEXT
from lm.corpus.grammar import Grammar
from lm.corpus.grammar_reader import read
from lm.errors import UserError
from lm.evaluation.kinds import KINDS, read_stories, repeated_pairs, token_kinds
from lm.tokenizer.tokenizer import Tokenizer

GRAMMAR = Grammar(
    """
words hero, friend | he
    Ann, Zoë | she
    Bob | he
words toy | color
    ball | blue
    kite | red
rule story
    {hero} had [a new|an old] {toy}. // {He} met {friend}. {friend} liked the {toy.color} {toy}.
""",
    "small",
)
TEXT = "Zoë had an old kite.\n\nShe met Ann. Ann liked the red kite."
TOKENS = ["Z", "oë", " had", " an old", " kite", ".", "\n\n", "She", " met", " Ann", ". ", "Ann", " liked", " the red"]
TOKENS += [" ", "ki", "te", ".", END_OF_TEXT]


def test_each_token_has_the_kind_of_its_first_visible_character():
    kinds = token_kinds(TEXT, read(GRAMMAR, TEXT), [token.encode() for token in TOKENS])
    found = [KINDS[kind] for kind in kinds.kinds]
    expected = ["first_name", "first_name", "wording", "wording", "first_other", "wording", "wording", "attribute"]
    expected += ["wording", "first_name", "wording", "later_name", "wording", "wording"]
    expected += ["wording", "later_other", "later_other", "wording", "wording"]
    assert found == expected
    # One of three names, one of two phrases, one of two toys, one of the two other names: all known when it begins,
    # except that "a new" and "an old" differ only in the second character.
    assert kinds.bits[[0, 3, 4, 9]] == pytest.approx([np.log2(3), 1, 1, 1])
    assert np.delete(kinds.bits, [0, 3, 4, 9]) == pytest.approx(np.zeros(len(TOKENS) - 4))


@given(data=st.data())
def test_the_bits_of_the_tokens_sum_to_those_of_the_story_however_it_is_cut(data):
    encoded = TEXT.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(encoded) - 1))))
    tokens = [encoded[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(encoded)])]
    kinds = token_kinds(TEXT, read(GRAMMAR, TEXT), tokens)
    assert kinds.bits.sum() == pytest.approx(np.log2(3) + 3)
    assert len(kinds.kinds) == len(tokens)


@given(st.lists(st.integers(0, 4), max_size=40))
def test_repeated_pairs_equal_a_search_through_all_earlier_pairs(ids):
    expected = [
        any(ids[earlier - 1 : earlier + 1] == ids[position - 1 : position + 1] for earlier in range(1, position))
        for position in range(len(ids))
    ]
    assert repeated_pairs(ids).tolist() == expected


def test_a_document_that_is_no_story_is_reported_with_its_number(monkeypatch):
    monkeypatch.setattr(lm.evaluation.kinds, "story_grammar", lambda: GRAMMAR)
    vocab = {**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}
    tokenizer = Tokenizer(vocab, [], [END_OF_TEXT])
    good, bad = (np.array(tokenizer.encode(text + END_OF_TEXT)) for text in (TEXT, "Bob hid."))
    (story,) = read_stories([good], tokenizer)
    assert story.text == TEXT and len(story.tokens.kinds) == len(good)
    with pytest.raises(UserError, match="val document 2: not a story of the built-in grammar, from character 6 on"):
        read_stories([good, bad], tokenizer)
