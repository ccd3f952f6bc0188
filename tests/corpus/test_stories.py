import hashlib
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import islice, product
from math import log2
from random import Random

import pytest

from lm.corpus.stories import Story, stories, story_grammar

DAYS = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}
ELDERS = {"Mom", "Dad", "Grandma", "Grandpa"}
MONTHS = {"March", "June"}
DIGEST = "4a4e22407933884297d129f7abc331c7f901cc4e5eafce934270cf82d35a1d1f"


@cache
def sample(seed: int, count: int) -> list[Story]:
    return list(islice(stories(seed), count))


@pytest.mark.parametrize("count", [80, pytest.param(700, marks=pytest.mark.slow)])
def test_a_story_has_exactly_one_derivation_with_the_bits_reported(count: int) -> None:
    derivations = story_grammar().derivations
    for seed in (1, 2, 3):
        for story in sample(seed, count):
            assert derivations(story.text) == [pytest.approx(story.bits)], story.text


def test_other_texts_are_not_stories() -> None:
    story, derivations = sample(1, 80)[0].text, story_grammar().derivations
    assert derivations(story + " ") == derivations(story[:-1]) == derivations("") == []
    assert derivations("Once upon a time, there was a kind girl named Lily.") == []


def test_seeds_determine_the_stories() -> None:
    """The digest protects published results: changing the grammar changes the corpus, which must be documented."""
    first = sample(1, 100)
    assert list(islice(stories(1), 100)) == first
    assert list(islice(stories(2), 100)) != first
    text = "\n".join(story.text for story in first)
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == DIGEST


def test_stories_have_the_length_and_vocabulary_of_small_children() -> None:
    texts = [story.text for story in sample(4, 2000)]
    assert 700 < sum(map(len, texts)) / len(texts) < 1000
    assert min(map(len, texts)) > 400 and max(map(len, texts)) < 1400
    words = {word for text in texts for word in re.findall("[a-z]+", text.lower())}
    assert 1300 < len(words) < 1700


@pytest.mark.parametrize(
    "mistake",
    [
        r"[^ -~\n]",
        r"[][{}<>|%_]",
        r"  | \n|\n |[^\n]\n[^\n]|\n\n\n|^\s|\s$",
        r"\b[Aa] [aeiou]",
        r"\b[Aa]n (?!honest|hour)[^aeiou]",
        r"\b(a|an|and|the|to|of|in|was|he|she|it|said|with) \1\b",
        r"[.!?]\"? [a-z](?<!\" [a-z])",
        r" [.,!?]|[.,!?]{2}|\w\"\w",
        r"[a-z,] (The|He|She|His|Her|One|Then|Now|And|But|So|It)\b",
        r"(^|\n\n)[a-z]",
        r"[a-zA-Z,]$",
    ],
)
def test_no_story_has_the_mistake(mistake: str) -> None:
    for story in sample(4, 2000):
        assert not (found := re.search(mistake, story.text)), story.text[max(0, found.start() - 40) : found.end() + 40]


def test_quotes_are_closed_in_every_paragraph() -> None:
    for story in sample(4, 2000):
        for paragraph in story.text.split("\n\n"):
            assert paragraph.count('"') % 2 == 0, paragraph


def test_few_names_and_the_hero_is_named_early_and_repeatedly() -> None:
    """A capital letter inside a sentence marks a name, so the names are known without the grammar."""
    texts = [story.text for story in sample(4, 2000)]
    known = {name for text in texts for name in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)} - DAYS - MONTHS
    for text in texts:
        names = Counter(name for name in re.findall(r"[A-Z][a-z]+", text) if name in known)
        assert len(names) <= 4 and len(names.keys() & ELDERS) <= 1, text
        hero = next(name for name in names if name not in ELDERS)
        assert names[hero] >= 2 and hero in text[:130], text


def test_a_name_goes_with_one_pronoun() -> None:
    pronouns = defaultdict(Counter)
    for story in sample(4, 2000):
        if found := re.match(r"[^.]* (girl|boy) named ([A-Z][a-z]+)\. (He|She|His|Her)\b", story.text):
            child, name, pronoun = found.groups()
            pronouns[name][child, pronoun in ("She", "Her")] += 1
    assert len(pronouns) > 40
    for name, seen in pronouns.items():
        assert set(seen) in ({("girl", True)}, {("boy", False)}), name


def test_a_thousand_stories_have_hundreds_of_sentence_skeletons() -> None:
    """All slots are masked (names, things, places, numbers, pronouns), so only the literal text counts."""
    random = Random(5).random
    skeletons = "\n\n".join(story_grammar().sample_template(random)[0] for _ in range(1000))
    sentences = set(re.split(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+", re.sub(r"%\([^)]*\)s", "_", skeletons)))
    assert len(sentences) >= 300


@pytest.mark.slow
def test_a_word_5_gram_model_stays_30_percent_above_the_entropy() -> None:
    """The model is trained on 4 MB and knows all words of the test text, but remembers only four words of context."""
    train, val = [story.text for story in sample(4, 5000)], sample(5, 300)
    bits = kneser_ney_bits(train, [story.text for story in val], order=5)
    assert bits > 1.3 * sum(story.bits for story in val)


def kneser_ney_bits(train: list[str], test: list[str], order: int, discount: float = 0.75) -> float:
    """-log2 p of `test` with interpolated Kneser-Ney smoothing (Chen and Goodman 1999, equation 21).

    Punctuation stays attached to the words: five words then reach further back, which fits better here.
    """

    def words(text: str) -> list[str]:
        return ["^"] * (order - 1) + re.findall(r"\n\n|\S+", text) + ["$"]

    counts = [Counter() for _ in range(order + 1)]
    for text in train:
        tokens = words(text)
        counts[order].update(zip(*(tokens[start:] for start in range(order))))
    for length in range(order - 1, 0, -1):
        counts[length].update(ngram[1:] for ngram in counts[length + 1])
    totals, kinds = defaultdict(int), defaultdict(int)
    for length in range(1, order + 1):
        for ngram, count in counts[length].items():
            totals[ngram[:-1]] += count
            kinds[ngram[:-1]] += 1
    vocabulary = {word for text in train + test for word in words(text)} - {"^"}
    bits = 0.0
    for text in test:
        tokens = words(text)
        for end in range(order, len(tokens) + 1):
            probability = 1 / len(vocabulary)
            for length in range(1, order + 1):
                ngram = tuple(tokens[end - length : end])
                if total := totals.get(ngram[:-1]):
                    kept = max(counts[length][ngram] - discount, 0)
                    probability = (kept + discount * kinds[ngram[:-1]] * probability) / total
            bits -= log2(probability)
    return bits


def test_the_5_gram_model_is_a_distribution() -> None:
    """The probabilities of all texts of up to ten words from a vocabulary of two sum to almost one."""
    train = ["a", "b a", "a b", "b", "a a b"]
    texts = [" ".join(words) for length in range(11) for words in product("ab", repeat=length)]
    total = sum(2 ** -kneser_ney_bits(train, [text], order=2) for text in texts)
    assert 0.99 < total < 1
