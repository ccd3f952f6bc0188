import pytest

from lm.corpus.grammar_parser import GrammarParser, Rule, Slot
from lm.errors import UserError

WORDS = "words hero | he\n    Ann, Eve | she\n    Bob | he\n"


def parse(rules: str) -> GrammarParser:
    return GrammarParser(WORDS + rules, "test.txt")


def test_items_of_an_alternative() -> None:
    parser = parse("rule story\n    {hero} [sat|ran]. // <end>\nrule end\n    Good night!")
    ((line, (hero, space, group, stop, paragraph, end)),) = parser.rules["story"].alternatives
    assert line == 5 and isinstance(hero, Slot) and isinstance(group, Rule)
    assert (space, stop, paragraph, end) == (" ", ".", "\n\n", parser.rules["end"])
    assert [items for _, items in group.alternatives] == [("sat",), ("ran",)]
    assert parser.rules["end"].alternatives == [(7, ("Good night!",))]


@pytest.mark.parametrize(
    ("phrase", "texts"),
    [
        ("hero", ("Ann", "Eve", "Bob")),
        ("He", ("She", "She", "He")),
        ("hero.He", ("She", "She", "He")),
        ("a he called hero", ("a she called Ann", "a she called Eve", "a he called Bob")),
        ("a thing", ("a ball", "an egg", "an urn")),
        ("A thing", ("A ball", "An egg", "An urn")),
        ("the thing", ("the ball", "the egg", "the urn")),
    ],
)
def test_texts_of_a_slot(phrase: str, texts: tuple[str, ...]) -> None:
    parser = parse(f"words thing\n    ball, egg, urn\nrule story\n    {{{phrase}}}")
    assert parser.slots[phrase].texts == texts


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("rule story\n    <strat>\nrule start\n    a", "test.txt:5: there is no rule <strat>; did you mean 'start'?"),
        ("rule story\n    <end>\nrule end", "test.txt:6: rule <end> has no alternatives; add them below it, indented"),
        (
            "rule story\n    a\nrule story\n    b",
            "test.txt:6: rule <story> is already defined on line 4; rename one of them",
        ),
        ("rule Story\n    a", "test.txt:4: expected a rule name of lowercase letters and hyphens, got 'Story'"),
        (
            "rul story\n    a",
            "test.txt:4: expected 'words ...' or 'rule ...', got 'rul story'; indent lines that follow a heading",
        ),
        ("rule story\n    {herp} ran.", "test.txt:5: {herp} names no variable or attribute; did you mean 'hero'?"),
        ("rule story\n    {hero.hee} ran.", "test.txt:5: {hero} has no attribute 'hee'; did you mean 'he'?"),
        (
            "words toy\n    ball\nrule story\n    {hero and toy}",
            "test.txt:7: {hero and toy} names 2 variables; use a separate slot for each",
        ),
        ("words toy | use\n    ball\nrule story\n    {toy}", "test.txt:5: expected words | use, got 'ball'"),
        (
            "words toy\n    ball,, kite\nrule story\n    {toy}",
            "test.txt:5: expected a word on both sides of every comma, got 'ball,, kite'",
        ),
        (
            "words hero\n    Max\nrule story\n    {hero}",
            "test.txt:4: the variable {hero} is already defined; rename one of them",
        ),
        (
            "words a, b\n    Max\nrule story\n    {a}",
            "test.txt:4: expected names of two or more lowercase letters, got 'a'",
        ),
        (
            "words one, two\n    Max\nrule story\n    {one}",
            "test.txt:4: {one}: expected at least 2 words, a different one for each variable, got 1",
        ),
        ("rule story\n    {herp.he}", "test.txt:5: {herp.he} names no variable or attribute; did you mean 'hero'?"),
        ("rule story\n    {hero (1)}", "test.txt:5: expected words, such as {a toy}, or {toy.color}, got {hero (1)}"),
        ("rule story\n    {}", "test.txt:5: expected words, such as {a toy}, or {toy.color}, got {}"),
        ("rule story\n    {hero} [ran", "test.txt:5: unexpected '[' in ' [ran'"),
        ("rule story\n    {hero} [ran]", "test.txt:5: expected two or more non-empty choices in [ran]"),
        ("rule story\n    {hero} [ran|]", "test.txt:5: expected two or more non-empty choices in [ran|]"),
    ],
)
def test_a_mistake_is_reported_with_its_line(rules: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(rules)
    assert str(caught.value) == message
