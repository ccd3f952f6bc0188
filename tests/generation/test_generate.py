import dataclasses
import itertools

import pytest
import torch

from lm.generation.compiled import fastest_decoder
from lm.generation.config import SampleConfig
from lm.generation.generate import complete, stream, window_notice
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def config(params) -> SampleConfig:
    return dataclasses.replace(
        params.sample, prompts=["a"], num_samples=3, max_new_tokens=30, temperature=1.0, top_k=0, top_p=1.0, seed=5
    )


@pytest.fixture
def greedy(config) -> SampleConfig:
    return dataclasses.replace(config, temperature=0.0, num_samples=1)


@pytest.fixture
def model(small, tokenizer) -> TransformerLM:
    """Random weights; the end of text comes after some tens of tokens."""
    torch.manual_seed(0)
    return TransformerLM(small, tokenizer.vocab_size).eval()


def follows(text: bytes, small, tokenizer: Tokenizer) -> TransformerLM:
    """After every byte comes the next byte of `text`, and at last the end of text.

    The residual stream is the token itself, one-hot, to which the blocks add nothing.
    """
    size = tokenizer.vocab_size
    shape = dataclasses.replace(small, d_model=size, num_heads=1, num_kv_heads=1, position="none", norm="none")
    model = TransformerLM(shape, size).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.token_embeddings.weight.copy_(torch.eye(size))
        for here, there in zip(text, [*text[1:], tokenizer.end_of_text_id]):
            model.lm_head.weight[there, here] = 1.0
    return model


def test_greedy_generation_follows_the_model_to_the_end_of_text(small, tokenizer, greedy):
    model = follows(b"abcdefgh", small, tokenizer)
    (sample,) = complete(model, tokenizer, "ab", greedy)
    assert (sample.text, sample.ended, sample.prompt) == ("abcdefgh", True, "ab")
    (sample,) = complete(model, tokenizer, "ab", dataclasses.replace(greedy, max_new_tokens=3))
    assert (sample.text, sample.ended) == ("abcde", False)


def test_a_stop_string_ends_the_text_and_is_cut_off(small, tokenizer, greedy):
    model = follows(b"abcdefgh", small, tokenizer)
    (sample,) = complete(model, tokenizer, "ab", greedy, stop=["x", "efg", "hi"])
    assert (sample.text, sample.ended) == ("abcd", True)
    assert list(stream(model, tokenizer, "ab", greedy, stop=["efg"])) == ["ab", "c", "d", "", "", "", "\n"]
    # The beginning of one that never comes is not lost.
    assert list(stream(model, tokenizer, "ab", greedy, stop=["hi"])) == ["ab", *"cdefg", "", "h", "\n"]


def test_a_text_outgrows_the_context_or_ends_with_it(small, tokenizer, greedy):
    model = follows(b"abcdefghijklmnopqrstuvwxyz", small, tokenizer)  # which sees 16
    (sample,) = complete(model, tokenizer, "abc", greedy)
    assert (sample.text, sample.ended) == ("abcdefghijklmnopqrstuvwxyz", True)
    (sample,) = complete(model, tokenizer, "abc", greedy, slide=False)
    assert (sample.text, sample.ended) == ("abcdefghijklmnopq", False)
    assert "".join(stream(model, tokenizer, "abc", greedy, slide=False)) == "abcdefghijklmnopq\n"


def test_a_sample_depends_on_its_own_seed_only(model, tokenizer, config):
    together = complete(model, tokenizer, "a", config)
    for index, sample in enumerate(together):
        alone = dataclasses.replace(config, num_samples=1, seed=5 + index)
        assert complete(model, tokenizer, "a", alone) == [sample]
    assert len({sample.text for sample in together}) == 3


def test_a_text_is_what_the_model_without_a_cache_and_the_seeds_generator_give(model, tokenizer, config):
    (sample,) = complete(model, tokenizer, "Hello", dataclasses.replace(config, num_samples=1))
    ids, generator = tokenizer.encode("Hello"), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(30):
            probabilities = model(torch.tensor(ids[-16:]))[-1].softmax(-1)
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    expected = list(itertools.takewhile(lambda token: token != tokenizer.end_of_text_id, ids))
    assert sample.text == tokenizer.decode(expected)


def test_streaming_gives_the_same_text_in_pieces(model, tokenizer, config):
    pieces = list(stream(model, tokenizer, "a", config))
    assert "".join(pieces) == "".join(f"{sample.text}\n" for sample in complete(model, tokenizer, "a", config))
    assert len(pieces) > 30


def test_the_fastest_decoder_gives_the_same_texts(model, tokenizer, config):
    assert complete(model, tokenizer, "a", config, make_decoder=fastest_decoder) == complete(
        model, tokenizer, "a", config
    )


def test_streaming_never_cuts_a_character(small, tokenizer, greedy):
    text = "aé→😀"
    pieces = list(stream(follows(text.encode(), small, tokenizer), tokenizer, "a", greedy))
    assert pieces == ["a", "", "é", "", "", "→", "", "", "", "😀", "", "\n"]


def test_half_a_character_at_the_end_is_shown_as_such(small, tokenizer, greedy):
    short = dataclasses.replace(greedy, max_new_tokens=2)
    model = follows("a😀".encode(), small, tokenizer)
    assert list(stream(model, tokenizer, "a", short)) == ["a", "", "\ufffd", "\n"]
    assert complete(model, tokenizer, "a", short)[0].text == "a\ufffd"


def test_a_model_that_is_not_finite_says_nothing(model, tokenizer, config):
    model.lm_head.weight.data.fill_(float("nan"))
    samples = complete(model, tokenizer, "a", config)
    assert [(sample.text, sample.ended) for sample in samples] == [("a", False)] * 3


def test_an_empty_prompt_begins_a_text(model, tokenizer, config):
    (sample,) = complete(model, tokenizer, "", dataclasses.replace(config, num_samples=1))
    (same,) = complete(model, tokenizer, "<|endoftext|>", dataclasses.replace(config, num_samples=1))
    assert same.text == "<|endoftext|>" + sample.text and sample.text


def test_what_does_not_fit_into_the_context_is_said():
    assert window_notice(10, 6, 16) is None
    assert "beyond them it forgets the beginning" in window_notice(10, 7, 16)
    assert "beyond them the text ends" in window_notice(10, 7, 16, slide=False)
    assert "its first 4 are not seen" in window_notice(20, 1, 16)
