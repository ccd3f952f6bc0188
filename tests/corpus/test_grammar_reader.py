from itertools import islice
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus.grammar import Grammar
from lm.corpus.grammar_reader import read
from lm.corpus.stories import stories, story_grammar
from tests.corpus.test_grammar import SMALL, enumerate_small

GRAMMAR = Grammar(SMALL, "small")
TEXTS = enumerate_small()


def probability_of_prefix(prefix: str) -> float:
    return sum(probability for text, probability in TEXTS.items() if text.startswith(prefix))


@pytest.mark.parametrize("text", TEXTS)
def test_the_bits_of_every_character_equal_an_enumeration_of_all_texts(text: str) -> None:
    reading = read(GRAMMAR, text)
    assert reading.mistake is None
    expected = [
        log2(probability_of_prefix(text[:end]) / probability_of_prefix(text[: end + 1])) for end in range(len(text))
    ]
    assert reading.bits == pytest.approx(expected, abs=1e-9)


@given(text=st.sampled_from(sorted(TEXTS)), position=st.integers(0, 80), new=st.text("AnEveBobsat .\n", max_size=9))
def test_a_mistake_is_the_first_character_that_no_text_shares(text: str, position: int, new: str) -> None:
    changed = text[:position] + new
    reading = read(GRAMMAR, changed)
    longest = max(len(changed[:end]) for end in range(len(changed) + 1) if probability_of_prefix(changed[:end]) > 0)
    if changed in TEXTS:
        assert reading.mistake is None
    else:
        assert reading.mistake == longest
    assert len(reading.bits) == longest
    assert sum(reading.bits) == pytest.approx(-log2(probability_of_prefix(changed[:longest])))


def test_parts_tell_where_each_character_comes_from() -> None:
    text = "Once long ago, there was Bob. Bob had a kite.\n\nHe met Ann, and she liked the red kite."
    parts = [
        (text[part.start : part.stop], part.slot.phrase, part.is_first, part.slot.repeats_word)
        for part in read(GRAMMAR, text).parts
        if part.slot
    ]
    assert parts == [
        ("Bob", "hero", True, True),
        ("Bob", "hero", False, True),
        ("a kite", "a toy", True, True),
        ("He", "He", False, False),
        ("Ann", "friend", True, True),
        ("she", "friend.he", False, False),
        ("red", "toy.color", False, False),
        ("kite", "toy", False, True),
    ]


@pytest.mark.parametrize(
    ("text", "mistake", "expected"),
    [
        ("Once long ago, there was Bob. Ann had a kite.", 30, "hero"),  # a name that must be repeated
        ("Once long ago, there was Bob. Bob had a kite.\n\nShe sat.", 47, "He"),
        ("Once long ago, there was Bob. Bob had a car.", 40, "a toy"),
        ("Twice", 0, None),  # wording
    ],
)
def test_the_last_part_before_a_mistake_is_what_was_expected(text: str, mistake: int, expected: str | None) -> None:
    reading = read(GRAMMAR, text)
    assert reading.mistake == mistake
    slot = reading.parts[-1].slot
    assert (slot.phrase if slot else None) == expected
    assert reading.parts[-1].start <= mistake < reading.parts[-1].stop


def test_a_text_may_end_too_early_or_too_late() -> None:
    text = "Once long ago, there was Bob. Bob had a kite.\n\nHe sat. A kite!"
    assert read(GRAMMAR, text).mistake is None
    assert read(GRAMMAR, text[:-1]).mistake == len(text) - 1
    reading = read(GRAMMAR, text + " More.")
    assert reading.mistake == reading.parts[-1].stop == len(text)
    assert read(GRAMMAR, "").mistake == 0


def test_built_in_stories_have_the_bits_with_which_they_were_generated() -> None:
    for story in islice(stories(11), 20):
        reading = read(story_grammar(), story.text)
        assert reading.mistake is None and sum(reading.bits) == pytest.approx(story.bits)
        assert [part.start for part in reading.parts] == [0, *(part.stop for part in reading.parts[:-1])]
        assert reading.parts[-1].stop == len(story.text) == len(reading.bits)


def test_a_slot_is_expected_with_the_probability_of_all_its_words() -> None:
    grammar = Grammar(
        "words toy\n    ball, kite, drum\nrule story\n    I saw <what>.\n"
        "rule what\n    {toy} one\n    {toy} two\n    nothing",
        "test.txt",
    )
    # Each of the words with each continuation has a probability of 1/9, which is less than the 1/3 of `nothing`.
    reading = read(grammar, "I saw you.")
    assert reading.mistake == 6 and reading.parts[-1].slot is not None
