from itertools import product
from math import log2
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.corpus.grammar import Grammar
from lm.errors import UserError

SMALL = """
# A comment.
words hero, friend | he
    Ann, Eve | she
    Bob | he
words toy | color
    ball, orange | blue
    kite | red
rule story
    <start> {hero} had {a toy}. // {He} <end>
rule start
    Once [upon a time|long ago], there was {hero}.
rule end
    met {friend}, and {friend.he} liked the {toy.color} {toy}.
    sat. {A toy}!
"""


def enumerate_small() -> dict[str, float]:
    """Every text of SMALL and its probability, enumerated with loops instead of the grammar."""
    texts = {}
    he = {"Ann": "she", "Eve": "she", "Bob": "he"}
    toys = {"a ball": ("blue", "ball"), "an orange": ("blue", "orange"), "a kite": ("red", "kite")}
    for when, hero, toy in product(("upon a time", "long ago"), he, toys):
        color, bare = toys[toy]
        start = f"Once {when}, there was {hero}. {hero} had {toy}.\n\n{he[hero].capitalize()} "
        texts[f"{start}sat. {toy.capitalize()}!"] = 1 / 2 / 3 / 3 / 2
        for friend in he:
            if friend != hero:
                texts[f"{start}met {friend}, and {he[friend]} liked the {color} {bare}."] = 1 / 2 / 3 / 3 / 2 / 2
    return texts


def story(rules: str) -> Grammar:
    return Grammar(f"words hero | he\n    Ann, Eve | she\n    Bob | he\n{rules}", "test.txt")


def test_probabilities_equal_an_enumeration_by_hand() -> None:
    grammar = Grammar(SMALL, "small")
    texts = enumerate_small()
    assert sum(texts.values()) == pytest.approx(1)
    for text, probability in texts.items():
        assert grammar.derivations(text) == [pytest.approx(-log2(probability))]


def test_texts_are_as_frequent_as_their_probabilities_say() -> None:
    grammar, random = Grammar(SMALL, "small"), Random(3).random
    texts = enumerate_small()
    counts = dict.fromkeys(texts, 0)
    for _ in range(20_000):
        text, bits = grammar.sample(random)
        counts[text] += 1
        assert bits == pytest.approx(-log2(texts[text]))
    # Pearson's chi-squared statistic of 54 texts has mean 53 and standard deviation 10.3.
    assert sum((counts[text] - 20_000 * p) ** 2 / (20_000 * p) for text, p in texts.items()) < 53 + 5 * 10.3


@pytest.mark.parametrize("text", ["", "Bob sat", "Bob sat. ", " Bob sat.", "Dan sat.", "Bob sat.Bob sat."])
def test_other_texts_have_no_derivation(text: str) -> None:
    grammar = story("rule story\n    {hero} sat.")
    assert len(grammar.derivations("Bob sat.")) == 1
    assert grammar.derivations(text) == []


def test_two_variables_of_a_lexicon_never_take_the_same_word() -> None:
    grammar = Grammar("words one, two, three\n    red, green, blue\nrule story\n    {one} {two} {three}", "test.txt")
    random = Random(1).random
    texts = {grammar.sample(random) for _ in range(300)}
    assert {frozenset(text.split()) for text, _ in texts} == {frozenset(("red", "green", "blue"))}
    assert len(texts) == 6 and {bits for _, bits in texts} == {log2(6)}


def test_percent_signs_are_literal_text() -> None:
    grammar = story("rule story\n    {hero} is 100% sure of %s.")
    assert grammar.sample(lambda: 0.0) == ("Ann is 100% sure of %s.", log2(3))


def test_a_template_keeps_its_slots_open() -> None:
    assert story("rule story\n    {hero} sat. {He} ran.").sample_template(lambda: 0.0) == (
        "%(hero)s sat. %(He)s ran.",
        0.0,
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("rule end\n    a", "test.txt:1: there is no 'rule story'; add it, since every text starts from this rule"),
        ("rule story\n    a\nrule end\n    b", "test.txt:6: rule <end> is never used; use it or delete it"),
        (
            "rule story\n    a<end>\nrule end\n    b<story>",
            "test.txt:4: rule <story> refers to itself, so a text might never end",
        ),
        (
            "rule story\n    {He} ran.",
            "test.txt:5: {He} may be the first mention of {hero} here, but does not identify its word: 'She' is "
            "equal to or a prefix of 'She'",
        ),
        (
            "rule story\n    <one> {He} ran.\nrule one\n    {hero} sat.\n    Rain fell.",
            "test.txt:5: {He} may be the first mention of {hero} here, but does not identify its word: 'She' is "
            "equal to or a prefix of 'She'",
        ),
        (
            "words toy\n    ball, balloon\nrule story\n    {toy}",
            "test.txt:7: {toy} may be the first mention of {toy} here, but does not identify its word: 'ball' is "
            "equal to or a prefix of 'balloon'",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_line(rules: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        story(rules)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "alternatives",
    [
        ("{hero} ran.", "{hero} ran."),
        ("{hero} ran.", "{hero} ran. {He} fell."),
        ("{hero} [ran|sat].", "{hero} [sat|fell]."),
        ("<one> ran.", "a ran."),
        ("Ann ran.", "{hero} ran."),
        ("<one><one>", "<two>b."),
    ],
)
def test_alternatives_that_are_not_prefix_free_are_rejected(alternatives: tuple[str, str]) -> None:
    rules = "rule story\n    <test>\n    Zebra <one>\n    Yak <two>\nrule one\n    a\n    b\nrule two\n    c\n    ab\n"
    with pytest.raises(
        UserError, match="rule <test>: a text of this line may be equal to, or a prefix of, a text of line 15"
    ):
        story(rules + "rule test\n" + "".join(f"    {alternative}\n" for alternative in alternatives))


parts = st.sampled_from(["a", "b", "c", "ab", "{one}", "{two}", "{a one}", "<low>", "[c|d]", "[ba|d|{two}]"])
alternatives = st.lists(st.lists(parts, min_size=1, max_size=4).map("".join), min_size=1, max_size=3, unique=True)


@settings(max_examples=300, deadline=None)
@given(top=alternatives, low=alternatives, seed=st.integers(0, 99))
def test_texts_of_accepted_grammars_have_one_derivation(top: list[str], low: list[str], seed: int) -> None:
    """`derivations` tries every choice and does not depend on the checks at construction."""
    low = [text.replace("<low>", "b") for text in low]
    rules = ["rule story", *("    <low>" + text for text in top), "rule low", *("    " + text for text in low)]
    try:
        grammar = Grammar("\n".join(["words one, two", "    aa, ab, ba", *rules]), "random")
    except UserError:
        return
    random = Random(seed).random
    for _ in range(20):
        text, bits = grammar.sample(random)
        assert grammar.derivations(text) == [pytest.approx(bits)]
