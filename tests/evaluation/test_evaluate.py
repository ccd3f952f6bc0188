import dataclasses
import math
from itertools import islice

import pytest
import torch

from lm.corpus.stories import stories
from lm.errors import UserError
from lm.evaluation.config import EvaluateConfig
from lm.evaluation.evaluate import evaluate
from lm.evaluation.kinds import KINDS
from lm.evaluation.picture import evaluation_picture
from lm.evaluation.table import tables
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from tests.corpus.test_grammar import enumerate_small
from tests.evaluation.conftest import Oracle

CONFIG = EvaluateConfig(num_samples=40, pairs_per_kind=2, seed=1)
CHEAP = EvaluateConfig(num_samples=0, pairs_per_kind=0, seed=1)


@pytest.fixture
def tokens(tokens_of):
    texts = sorted(enumerate_small())
    bits = sum(-math.log2(enumerate_small()[text]) for text in texts[::3])
    return tokens_of(train=texts[1::3], val=texts[::3], entropy_bits=bits)


def test_a_model_that_knows_the_distribution_is_perfect(small_grammar, tokenizer, tokens, sample):
    metrics = evaluate(Oracle(), tokenizer, tokens, CONFIG, sample).metrics
    assert metrics["excess_bits_per_byte"] == pytest.approx(0, abs=1e-6)
    assert metrics["bits_per_byte"] == pytest.approx(metrics["floor_bits_per_byte"])
    assert metrics["forward_divergence_bits"] == pytest.approx(0, abs=1e-5)
    assert metrics["reverse_divergence_bits"] == pytest.approx(0, abs=1e-5)
    assert metrics["minimal_pair_accuracy"] == metrics["samples_derivable"] == metrics["samples_correct_share"] == 1
    assert metrics["samples_mistakes_later_name"] == 0 and 0 < metrics["samples_in_train"] < 1
    assert (
        metrics["samples_derivable_low"] == pytest.approx(0.9124, abs=1e-4) and metrics["samples_derivable_high"] == 1
    )
    # Guessing right is as probable as the guess says, and only choices of the grammar are left to guess.
    assert metrics["calibration_error"] < 0.05 and metrics["top_choice_accuracy"] > 0.9
    assert metrics["configured_samples_derivable"] == 1 > metrics["configured_samples_distinct"]
    # Here, no choice is left after the first characters of a text.
    assert metrics["nats_from_token_0"] > metrics["nats_from_token_64"]
    assert metrics["later_name_nats"] == pytest.approx(0, abs=1e-6)
    assert metrics["first_name_nats"] > 0.2


def test_a_model_that_forgets_names_shows_it_where_names_matter(small_grammar, tokenizer, tokens, sample):
    metrics = evaluate(Oracle(forget_names=True), tokenizer, tokens, CONFIG, sample).metrics
    # One of three names, in three letters.
    assert metrics["later_name_nats"] == pytest.approx(math.log(3) / 3)
    later = metrics["later_name_excess_bits_per_byte"]
    assert later > 0.01
    # A pronoun follows from a name. Nothing else does.
    assert metrics["attribute_excess_bits_per_byte"] > 0.01
    for kind in ("wording", "first_other", "later_other"):
        assert metrics[f"{kind}_excess_bits_per_byte"] == pytest.approx(0, abs=1e-6)
    assert metrics["minimal_pair_accuracy_later_other"] == 1 > metrics["minimal_pair_accuracy_later_name"]
    assert metrics["samples_derivable"] < 0.7 < 10 * metrics["samples_mistakes_later_name"]


def test_the_parts_sum_to_the_whole(small_grammar, tokenizer, tokens, sample):
    metrics = evaluate(Oracle(forget_names=True), tokenizer, tokens, CHEAP, sample).metrics
    assert sum(metrics.get(f"{kind}_excess_bits_per_byte", 0) for kind in KINDS) == pytest.approx(
        metrics["excess_bits_per_byte"]
    )
    assert sum(metrics[f"{kind}_share"] for kind in KINDS if f"{kind}_share" in metrics) == pytest.approx(1)
    nats = sum(metrics[f"{kind}_share"] * metrics[f"{kind}_nats"] for kind in KINDS if f"{kind}_nats" in metrics)
    assert nats == pytest.approx(metrics["nats_per_token"])
    assert not any(name.startswith(("samples", "minimal")) for name in metrics)
    table = tables(metrics)
    name = metrics["later_name_nats"]
    assert f"| later mentions of names | {metrics['later_name_share']:.1%} | {name:.4f} | 0.0000 |" in table
    assert f"| position 32 to 63 |  | {metrics['nats_from_token_32']:.4f} |" in table
    assert f"| position from 64 on |  | {metrics['nats_from_token_64']:.4f} |" in table
    assert "There are no judged samples" in table and "There are no minimal pairs" in table


@pytest.fixture
def untrained(small):
    torch.manual_seed(0)
    return TransformerLM(dataclasses.replace(small, context_length=32), vocab_size=257).eval()


def test_other_text_gets_the_parts_that_apply(tokenizer, tokens_of, sample, untrained, tmp_path):
    tokens = tokens_of(train=["x"], val=["A text without a grammar. " * 3, "Another one."], entropy_bits=None)
    with torch.no_grad():
        untrained.lm_head.weight.zero_()
    evaluation = evaluate(untrained, tokenizer, tokens, CONFIG, sample)
    metrics = evaluation.metrics
    assert metrics["nats_per_token"] == pytest.approx(math.log(257)) and metrics["tokens"] == 92
    assert metrics["bits_per_byte"] == pytest.approx(92 * math.log2(257) / 90)
    assert metrics["repeated_pair_share"] > 0.5 and "floor_bits_per_byte" not in metrics
    assert [name for name in metrics if name.startswith("nats_from")] == [
        f"nats_from_token_{start}" for start in (0, 16, 32, 64)
    ]
    assert "The grammar of this text is not known" in tables(metrics)
    evaluation_picture(metrics, evaluation.reliability, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_one_document_has_no_standard_error(tokenizer, tokens_of, sample, untrained):
    metrics = evaluate(untrained, tokenizer, tokens_of(["x"], ["One document."], None), CONFIG, sample).metrics
    assert "bits_per_byte" in metrics and "bits_per_byte_stderr" not in metrics
    assert "±" not in tables(metrics)


def test_built_in_stories_have_all_parts(tokenizer, tokens_of, sample, untrained, tmp_path):
    source = list(islice(stories(5), 3))
    tokens = tokens_of(["x"], [story.text for story in source], sum(story.bits for story in source))
    config = EvaluateConfig(num_samples=2, pairs_per_kind=1, seed=1)
    evaluation = evaluate(untrained, tokenizer, tokens, config, sample)
    metrics = evaluation.metrics
    size = sum(len(story.text) for story in source)
    assert metrics["floor_bits_per_byte"] == pytest.approx(sum(story.bits for story in source) / size)
    assert metrics["samples_derivable"] == 0 and "reverse_divergence_bits" not in metrics
    assert metrics["minimal_pairs"] == 9
    table = tables(metrics)
    assert "later mentions of names" in table and "There are no" not in table
    evaluation_picture(metrics, evaluation.reliability, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_tokens_of_another_tokenizer_are_refused(tokenizer, tokens_of, sample, untrained):
    tokens = tokens_of(["x"], ["y"], None)
    other = Tokenizer(
        {**{i: bytes([i]) for i in range(256)}, 256: b"<|endoftext|>", 257: b"ab"}, [(b"a", b"b")], ["<|endoftext|>"]
    )
    with pytest.raises(UserError, match="encoded by a different tokenizer"):
        evaluate(untrained, other, tokens, CONFIG, sample)


def test_divergence_is_a_result(tokenizer, tokens_of, sample, untrained, tmp_path):
    with torch.no_grad():
        untrained.lm_head.weight.fill_(math.nan)
    evaluation = evaluate(untrained, tokenizer, tokens_of(["x"], ["y"], None), CONFIG, sample)
    assert evaluation.metrics == {"documents": 1, "tokens": 2, "diverged": 1}
    assert tables(evaluation.metrics) == "The model's loss is not finite, so there is nothing else to measure.\n"
    evaluation_picture(evaluation.metrics, evaluation.reliability, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
