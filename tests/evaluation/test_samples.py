import math
from dataclasses import replace

import pytest

from lm.evaluation.documents import split_documents
from lm.evaluation.samples import Judgment, generate_texts, judge, reverse_divergence, share_of_copies
from tests.corpus.test_grammar import enumerate_small
from tests.evaluation.conftest import Oracle

TEXT = "Once long ago, there was Bob. Bob had a kite.\n\nHe sat. A kite!"


@pytest.mark.parametrize(
    ("text", "mistake", "position"),
    [
        (TEXT.replace("Bob had", "Eve had"), "later_name", 30),
        (TEXT.replace("He", "She"), "attribute", 47),
        (TEXT.replace("A kite!", "A ball!"), "later_other", 57),
        (TEXT.replace("a kite", "a car"), "first_other", 40),
        (TEXT.replace("was Bob", "was Tim"), "first_name", 25),
        (TEXT.replace("long ago", "before"), "wording", 5),
        (TEXT[:-1], "ending", len(TEXT) - 1),
        (TEXT[:-4], "ending", len(TEXT) - 4),
        (TEXT + " Then", "ending", len(TEXT)),
        ("", "ending", 0),
    ],
)
def test_mistakes_by_hand(small_grammar, text, mistake, position):
    judgment = judge(small_grammar, text)
    assert judgment.mistake == mistake and judgment.bits is None
    assert judgment.correct_share == pytest.approx(position / max(1, len(text)))


def test_a_correct_text_has_its_bits(small_grammar):
    judgment = judge(small_grammar, TEXT)
    assert judgment == Judgment(pytest.approx(-math.log2(enumerate_small()[TEXT])), 1.0, None)


@pytest.mark.slow  # generates 400 texts token by token
def test_generated_texts_are_as_frequent_as_the_model_says(small_grammar, tokenizer, sample):
    own = replace(sample, temperature=1.0, top_p=1.0, num_samples=400, seed=5, max_new_tokens=200)
    probabilities = enumerate_small()
    texts = generate_texts(Oracle(), tokenizer, own, slide=False)
    # Pearson's chi-squared statistic of 54 texts has mean 53 and standard deviation 10.3.
    assert set(texts) <= set(probabilities)
    chi2 = sum((texts.count(text) - 400 * p) ** 2 / (400 * p) for text, p in probabilities.items())
    assert chi2 < 53 + 5 * 10.3
    assert texts[:3] == generate_texts(Oracle(), tokenizer, replace(own, num_samples=3), slide=False)
    cut = replace(own, num_samples=1, max_new_tokens=6)
    assert generate_texts(Oracle(), tokenizer, cut, slide=False) == [texts[0][:6]]


def test_copies_of_the_train_split_are_found_as_whole_documents(tokenizer):
    train = tokenizer.encode_array("a b<|endoftext|>c<|endoftext|>c d<|endoftext|>")
    documents = {document.tobytes() for document in split_documents(train, tokenizer.end_of_text_id)}
    assert share_of_copies(["c", "c", "b", "a b", "d"], tokenizer, documents) == pytest.approx(3 / 5)


def test_the_reverse_divergence_is_zero_for_the_grammar_itself_and_exact_for_another_model(small_grammar, tokenizer):
    texts = [text for text, p in enumerate_small().items() for _ in range(round(p * 144))]
    judgments = [judge(small_grammar, text) for text in texts]
    exact = reverse_divergence(Oracle(), tokenizer, texts, judgments)
    assert exact.value == pytest.approx(0, abs=1e-6) and exact.stderr == pytest.approx(0, abs=1e-6)

    # A model that takes one text with probability 1/2 and makes a mistake otherwise: among the texts that the grammar
    # derives, it has all its probability on this one, so the divergence is -log2 p of it under the grammar.
    class Half(Oracle):
        def __call__(self, token_ids):
            logits = super().__call__(token_ids)
            chosen = [256, *TEXT.encode(), 256]
            for row, ids in enumerate(token_ids.tolist()):
                for position in range(len(ids)):
                    logits[row, position] = -1e4
                    logits[row, position, chosen[position + 1] if position + 1 < len(chosen) else 256] = 0.0
                logits[row, 0, 0] = 0.0  # as probable as the true first byte
            return logits

    texts = [TEXT, "\0"] * 50
    half = reverse_divergence(Half(), tokenizer, texts, [judge(small_grammar, text) for text in texts])
    assert half.value == pytest.approx(-math.log2(enumerate_small()[TEXT]))
    assert reverse_divergence(Half(), tokenizer, ["\0"], [judge(small_grammar, "\0")]) is None
