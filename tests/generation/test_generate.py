import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from lm.generation.batch import Batch
from lm.generation.config import SampleConfig
from lm.generation.decoder import Decoder
from lm.generation.generate import complete, requests, stream, window_notice
from lm.generation.numba_decoder import NumbaDecoder
from lm.generation.text import Sample
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
    """A model with random weights, which ends a text after some tens of tokens."""
    torch.manual_seed(0)
    return TransformerLM(small, tokenizer.vocab_size).eval()


def model_of(text: bytes, small, tokenizer: Tokenizer) -> TransformerLM:
    """Build a model that predicts, after each byte of `text`, the next one, and after the last the end of text.

    The bytes must differ. The residual stream is the one-hot token itself, to which the blocks add nothing.
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


def samples_of(
    model: TransformerLM, tokenizer: Tokenizer, prompt: str, config: SampleConfig, **options
) -> list[Sample]:
    return complete(Batch(Decoder(model, config.num_samples)), tokenizer, prompt, config, **options)


def pieces_of(model: TransformerLM, tokenizer: Tokenizer, prompt: str, config: SampleConfig, stop=()) -> list[str]:
    pending = requests(tokenizer, prompt, config)
    return [piece for _, piece, _ in stream(Batch(Decoder(model, 1)), tokenizer, pending, stop)]


def test_greedy_generation_follows_the_model_to_the_end_of_text(small, tokenizer, greedy):
    model = model_of(b"abcdefgh", small, tokenizer)
    (sample,) = samples_of(model, tokenizer, "ab", greedy)
    assert (sample.text, sample.ended, sample.prompt) == ("abcdefgh", True, "ab")
    (sample,) = samples_of(model, tokenizer, "ab", dataclasses.replace(greedy, max_new_tokens=3))
    assert (sample.text, sample.ended) == ("abcde", False)


def test_a_stop_string_ends_the_text_and_is_cut_off(small, tokenizer, greedy):
    model = model_of(b"abcdefgh", small, tokenizer)
    (sample,) = samples_of(model, tokenizer, "ab", greedy, stop=["x", "efg", "hi"])
    assert (sample.text, sample.ended) == ("abcd", True)
    assert pieces_of(model, tokenizer, "ab", greedy, stop=["efg"]) == ["c", "d", "", "", ""]
    # The beginning of a stop string that is never completed is part of the text.
    assert pieces_of(model, tokenizer, "ab", greedy, stop=["hi"]) == [*"cdefg", "", "h"]


def test_a_text_slides_past_the_context_or_ends_there(small, tokenizer, greedy):
    # A context of 16 tokens: the end-of-text token before the prompt, and 15 letters. The last letter is not read.
    model = model_of(b"abcdefghijklmnopqrstuvwxyz", small, tokenizer)
    (sample,) = samples_of(model, tokenizer, "abc", greedy)
    assert (sample.text, sample.ended) == ("abcdefghijklmnopqrstuvwxyz", True)
    (sample,) = samples_of(model, tokenizer, "abc", greedy, slide=False)
    assert (sample.text, sample.ended) == ("abcdefghijklmnop", False)


def test_a_sample_depends_on_its_own_seed_only(model, tokenizer, config):
    together = samples_of(model, tokenizer, "a", config)
    for index, sample in enumerate(together):
        alone = dataclasses.replace(config, num_samples=1, seed=5 + index)
        assert samples_of(model, tokenizer, "a", alone) == [sample]
    assert len({sample.text for sample in together}) == 3


def test_a_text_is_the_one_drawn_without_a_cache(model, tokenizer, config):
    (sample,) = samples_of(model, tokenizer, "Hello", dataclasses.replace(config, num_samples=1))
    ids, generator = [tokenizer.end_of_text_id, *b"Hello"], torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(30):
            probabilities = model(torch.tensor(ids[-16:]))[-1].softmax(-1)
            uniform = float(torch.rand((), dtype=torch.float64, generator=generator))
            ids.append(int(np.searchsorted(np.cumsum(probabilities.double().numpy()), uniform)))
    expected = list(itertools.takewhile(lambda token: token != tokenizer.end_of_text_id, ids[1:]))
    assert sample.text == tokenizer.decode(expected)


def test_a_prompt_is_the_beginning_of_a_document(small, tokenizer, greedy):
    end = tokenizer.end_of_text_id
    for prompt, ids in (("ab", [end, *b"ab"]), ("", [end]), ("<|endoftext|>ab", [end, *b"ab"])):
        (request,) = requests(tokenizer, prompt, greedy)
        assert request.prompt_ids == ids


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_texts_wait_for_a_free_row_and_stay_the_same(model, tokenizer, config, num_rows):
    batch = Batch(Decoder(model, num_rows))
    texts, order = ["a"] * 3, []
    for index, piece, _ in stream(batch, tokenizer, requests(tokenizer, "a", config)):
        texts[index] += piece
        order.append(index)
    assert texts == [sample.text for sample in samples_of(model, tokenizer, "a", config)]
    assert len(set(order[:num_rows])) == num_rows
    assert num_rows > 1 or order == sorted(order)
    assert not batch and batch.num_free == num_rows


def test_a_closed_stream_removes_its_texts_from_the_batch(model, tokenizer, config):
    batch = Batch(Decoder(model, 2))
    pieces = stream(batch, tokenizer, requests(tokenizer, "a", config))
    next(pieces)
    pieces.close()
    assert not batch and batch.num_free == 2


def test_a_request_is_only_built_when_a_row_is_free(model, tokenizer, config):
    many = dataclasses.replace(config, num_samples=10**6)
    with contextlib.closing(stream(Batch(Decoder(model, 2)), tokenizer, requests(tokenizer, "a", many))) as pieces:
        assert [index for index, _, _ in itertools.islice(pieces, 4)] == [0, 1, 0, 1]


def test_the_numba_decoder_gives_the_same_texts(model, tokenizer, config):
    batch = Batch(NumbaDecoder(model, config.num_samples))
    assert complete(batch, tokenizer, "a", config) == samples_of(model, tokenizer, "a", config)


def test_streaming_never_cuts_a_character(small, tokenizer, greedy):
    text = "aé→😀"
    pieces = pieces_of(model_of(text.encode(), small, tokenizer), tokenizer, "a", greedy)
    assert pieces == ["", "é", "", "", "→", "", "", "", "😀", ""]


def test_an_incomplete_character_at_the_end_becomes_u_fffd(small, tokenizer, greedy):
    short = dataclasses.replace(greedy, max_new_tokens=2)
    model = model_of("a😀".encode(), small, tokenizer)
    assert pieces_of(model, tokenizer, "a", short) == ["", "\ufffd"]
    assert samples_of(model, tokenizer, "a", short)[0].text == "a\ufffd"


def test_a_diverged_model_adds_nothing_to_the_prompt(model, tokenizer, config):
    model.lm_head.weight.data.fill_(float("nan"))
    samples = samples_of(model, tokenizer, "a", config)
    assert [(sample.text, sample.ended) for sample in samples] == [("a", False)] * 3


def test_an_empty_prompt_starts_a_new_text(model, tokenizer, config):
    (sample,) = samples_of(model, tokenizer, "", dataclasses.replace(config, num_samples=1))
    (same,) = samples_of(model, tokenizer, "<|endoftext|>", dataclasses.replace(config, num_samples=1))
    assert same.text == "<|endoftext|>" + sample.text and sample.text


def test_a_notice_says_what_does_not_fit_into_the_context():
    assert window_notice(10, 6, 16) is None
    assert "the beginning of a longer text is forgotten" in window_notice(10, 7, 16)
    assert "the text ends there" in window_notice(10, 7, 16, slide=False)
    assert "the first 4 are ignored" in window_notice(20, 1, 16)
