import dataclasses

import pytest
import torch

from lm.corpus.config import END_OF_TEXT
from lm.generation.config import SampleConfig
from lm.generation.generate import complete, generate, stream, window_notice
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The bytes alone, and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture
def config(params) -> SampleConfig:
    return dataclasses.replace(
        params.sample, prompts=["a"], num_samples=3, max_new_tokens=30, temperature=1.0, top_k=0, top_p=1.0, seed=5
    )


@pytest.fixture
def model(small, tokenizer) -> TransformerLM:
    """Random weights; the end of text comes after some tens of tokens."""
    torch.manual_seed(0)
    return TransformerLM(small, tokenizer.vocab_size).eval()


class Follows(torch.nn.Module):
    """After every byte comes the next byte of `text`, and at last the end of text."""

    def __init__(self, text: bytes, small, tokenizer) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = small
        following = torch.zeros(257, dtype=torch.long)
        for here, there in zip(text, [*text[1:], tokenizer.end_of_text_id]):
            following[here] = there
        self.register_buffer("following", following)

    def forward(self, ids):
        return torch.nn.functional.one_hot(self.following[ids], 257).float()


def test_greedy_generation_follows_the_model_to_the_end_of_text(small, tokenizer, config):
    greedy = dataclasses.replace(config, temperature=0.0, num_samples=1)
    (sample,) = complete(Follows(b"abcdefgh", small, tokenizer), tokenizer, "ab", greedy)
    assert (sample.text, sample.ended, sample.prompt) == ("abcdefgh", True, "ab")
    (sample,) = complete(
        Follows(b"abcdefgh", small, tokenizer), tokenizer, "ab", dataclasses.replace(greedy, max_new_tokens=3)
    )
    assert (sample.text, sample.ended) == ("abcde", False)


def test_greedy_generation_equals_an_argmax_loop_beyond_the_context(model, tokenizer, config):
    ids = tokenizer.encode("Hello")
    with torch.no_grad():
        for _ in range(30):
            ids.append(int(model(torch.tensor(ids[-16:]))[-1].argmax()))
    new = [
        row[0]
        for row in generate(model, tokenizer.encode("Hello"), [1], 999, dataclasses.replace(config, temperature=0.0))
    ]
    assert new == ids[5:]


def test_a_sample_depends_on_its_own_seed_only(model, tokenizer, config):
    together = complete(model, tokenizer, "a", config)
    for index, sample in enumerate(together):
        alone = dataclasses.replace(config, num_samples=1, seed=5 + index)
        assert complete(model, tokenizer, "a", alone) == [sample]
    assert len({sample.text for sample in together}) == 3


def test_streaming_gives_the_same_text_in_pieces(model, tokenizer, config):
    pieces = list(stream(model, tokenizer, "a", config))
    assert "".join(pieces) == "".join(f"{sample.text}\n" for sample in complete(model, tokenizer, "a", config))
    assert len(pieces) > 30


def test_streaming_never_cuts_a_character(small, tokenizer, config):
    text = "aé→😀"
    greedy = dataclasses.replace(config, temperature=0.0, num_samples=1)
    pieces = list(stream(Follows(text.encode(), small, tokenizer), tokenizer, "a", greedy))
    assert "".join(pieces) == text + "\n"
    assert "\ufffd" not in "".join(pieces)


def test_a_model_that_is_not_finite_says_nothing(model, tokenizer, config):
    model.lm_head.weight.data.fill_(float("nan"))
    samples = complete(model, tokenizer, "a", config)
    assert [(sample.text, sample.ended) for sample in samples] == [("a", False)] * 3


def test_an_empty_prompt_begins_a_text(model, tokenizer, config):
    first = next(generate(model, [], [5], tokenizer.end_of_text_id, config))
    same = next(generate(model, [tokenizer.end_of_text_id], [5], tokenizer.end_of_text_id, config))
    assert first == same


def test_draws_follow_the_models_distribution(model, tokenizer, config):
    with torch.no_grad():
        expected = model(torch.tensor([[97]]))[0, -1].softmax(-1).double() * 4000
    one = dataclasses.replace(config, max_new_tokens=1)
    drawn = next(generate(model, [97], list(range(4000)), -1, one))
    counts = torch.bincount(torch.tensor(drawn), minlength=257).double()
    # 256 degrees of freedom: mean 256, standard deviation 22.6; five of these
    assert ((counts - expected) ** 2 / expected).sum() < 256 + 5 * 22.6


def test_what_does_not_fit_into_the_context_is_said():
    assert window_notice(10, 6, 16) is None
    assert "beyond them it forgets the beginning" in window_notice(10, 7, 16)
    assert "its first 4 are not seen" in window_notice(20, 1, 16)
