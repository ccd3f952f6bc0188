"""The API through OpenAI's own client: the texts and their scores are those of the model."""

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from lm.generation.batch import Batch
from lm.generation.decoder import Decoder
from lm.generation.generate import complete
from tests.serving.conftest import client_of, running

STORY = {"model": "tiny", "prompt": "Once", "max_tokens": 40, "temperature": 1.0, "top_p": 0.95, "seed": 3}


def test_a_text_is_the_one_that_generation_produces(random_client, random_model, tokenizer, params):
    config = dataclasses.replace(
        params.sample, prompts=["Once"], num_samples=2, max_new_tokens=40, temperature=1.0, top_k=0, top_p=0.95, seed=3
    )
    expected = [
        sample.text for sample in complete(Batch(Decoder(random_model, 2)), tokenizer, "Once", config, slide=False)
    ]
    reply = random_client.completions.create(**STORY, n=2)
    assert ["Once" + choice.text for choice in reply.choices] == expected
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.usage.prompt_tokens == 5  # the end-of-text token in front
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert (reply.object, reply.model) == ("text_completion", "tiny")


def test_a_stream_has_the_same_content(random_client):
    whole = random_client.completions.create(**STORY, n=2, logprobs=3)
    chunks = list(
        random_client.completions.create(**STORY, n=2, logprobs=3, stream=True, stream_options={"include_usage": True})
    )
    last = chunks.pop()
    assert last.choices == [] and last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 20
    for choice in whole.choices:
        pieces = [piece for chunk in chunks for piece in chunk.choices if piece.index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [choice.finish_reason]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [value for piece in pieces for value in getattr(piece.logprobs, name)] == getattr(
                choice.logprobs, name
            )


def test_logprobs_match_the_model_without_a_cache(random_client, random_model, tokenizer):
    request = {**STORY, "temperature": 0.5, "max_tokens": 5, "extra_body": {"repetition_penalty": 1.3}}
    found = random_client.completions.create(**request, logprobs=2).choices[0].logprobs
    ids = tokenizer.encode_prompt("Once")
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        with torch.no_grad():
            expected = random_model(torch.tensor(ids))[-1].log_softmax(-1)
        data = bytes(int(byte, 16) for byte in token.split(r"\x")[1:]) if token.startswith("bytes:") else token.encode()
        (token_id,) = tokenizer.encode(data.decode()) if data.isascii() else data
        ids.append(token_id)
        assert logprob == pytest.approx(float(expected[token_id]), abs=1e-5)
        assert sorted(top.values())[-2:] == pytest.approx(sorted(expected.tolist())[-2:], abs=1e-5)
        assert top[token] == logprob


def test_concurrent_requests_get_the_texts_they_would_get_on_their_own(random_server, random_client, before_each_step):
    requests = [
        {**STORY, "prompt": prompt, "seed": seed} for seed, prompt in enumerate(["a", "bcd", "Once upon", "", "?"])
    ]
    alone = [random_client.completions.create(**request).choices[0].text for request in requests]
    together = []

    def watch() -> None:
        together.append(running(random_server))
        time.sleep(0.005)

    before_each_step(watch)
    with ThreadPoolExecutor(5) as pool:
        texts = list(pool.map(lambda request: random_client.completions.create(**request).choices[0].text, requests))
    assert texts == alone
    assert max(together) == 4  # all rows


def test_finish_reasons(client):
    def finished(prompt: str, **fields) -> tuple[str, str]:
        choice = client.completions.create(model="tiny", prompt=prompt, temperature=0, **fields).choices[0]
        return choice.text, choice.finish_reason

    assert finished("v", max_tokens=100) == ("wxyz", "stop")
    assert finished("a", max_tokens=5) == ("bcdef", "length")
    assert finished("a", max_tokens=100, stop=["x", "hij", "ij"]) == ("bcdefg", "stop")
    assert finished("1" * 254, max_tokens=100) == ("23", "length")  # the context is full


def test_every_prompt_of_a_list_is_continued(client):
    reply = client.completions.create(model="tiny", prompt=["x", "b"], max_tokens=3, temperature=0, n=2)
    assert [choice.text for choice in reply.choices] == ["yz", "yz", "cde", "cde"]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 12)


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'other'"):
        client.models.retrieve("other")


def test_a_prompt_follows_the_end_of_text_token_like_a_document(random_client):
    request = {**STORY, "max_tokens": 8, "temperature": 0}
    texts = [
        random_client.completions.create(**{**request, "prompt": prompt}, extra_body=extra).choices[0].text
        for prompt, extra in [
            ("Once", {}),
            ([256, *b"Once"], {}),
            ("Once", {"add_special_tokens": False}),
            ([*b"Once"], {}),
        ]
    ]
    assert texts[0] == texts[1] != texts[2] == texts[3]


def test_echo_scores_the_prompt(random_client, random_model, tokenizer):
    """As lm-eval reads them: the first token has no log-probability."""
    request = {**STORY, "echo": True, "logprobs": 2}
    alone = random_client.completions.create(**{**request, "max_tokens": 0})
    choice = alone.choices[0]
    ids = tokenizer.encode_prompt("Once")
    with torch.no_grad():
        expected = random_model(torch.tensor(ids)).log_softmax(-1)[range(4), ids[1:]]
    assert (choice.text, choice.finish_reason) == ("Once", "length")
    assert choice.logprobs.tokens == ["<|endoftext|>", "O", "n", "c", "e"]
    assert choice.logprobs.text_offset == [0, 0, 1, 2, 3]
    assert choice.logprobs.token_logprobs[0] is choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [len(top) for top in choice.logprobs.top_logprobs[1:]] == [3, 3, 3, 3]  # with the token itself
    assert (alone.usage.prompt_tokens, alone.usage.completion_tokens) == (5, 0)

    more = random_client.completions.create(**{**request, "max_tokens": 6}).choices[0]
    plain = random_client.completions.create(**{**request, "max_tokens": 6, "echo": False}).choices[0]
    assert more.text == "Once" + plain.text
    assert more.logprobs.tokens == choice.logprobs.tokens + plain.logprobs.tokens
    assert more.logprobs.token_logprobs[5:] == plain.logprobs.token_logprobs
    assert more.logprobs.text_offset[5:] == [4 + offset for offset in plain.logprobs.text_offset]
    pieces = [
        chunk.choices[0] for chunk in random_client.completions.create(**{**request, "max_tokens": 6}, stream=True)
    ]
    assert "".join(piece.text for piece in pieces) == more.text
    assert [token for piece in pieces for token in piece.logprobs.tokens] == more.logprobs.tokens


def test_the_end_of_a_text_is_scored_with_echo(client):
    """lm-eval leaves out the last token, which it takes for a generated one."""
    choice = client.completions.create(
        model="tiny", prompt=[[*b"yz"]], max_tokens=1, temperature=0, echo=True, logprobs=1
    ).choices[0]
    assert (choice.text, choice.finish_reason) == ("yz", "stop")
    assert choice.logprobs.tokens == ["y", "z", "<|endoftext|>"]
    assert choice.logprobs.text_offset == [0, 1, 2]


def test_echo_without_logprobs(client):
    request = {"model": "tiny", "temperature": 0, "echo": True}
    reply = client.completions.create(**request, prompt=["x", "b"], max_tokens=2)
    assert [choice.text for choice in reply.choices] == ["xyz", "bcd"]
    reply = client.completions.create(**request, prompt=[[*b"ab"], [*"é".encode()]], max_tokens=0)
    assert [choice.text for choice in reply.choices] == ["ab", "é"]


def test_a_stop_string_does_not_end_the_echo(client):
    reply = client.completions.create(
        model="tiny", prompt="abc", max_tokens=9, temperature=0, echo=True, stop=["b", "f"], logprobs=0
    )
    assert reply.choices[0].text == "abcde"
    assert "".join(reply.choices[0].logprobs.tokens) == "<|endoftext|>abcde"


def test_best_of_returns_the_most_likely_texts(random_client):
    request = {**STORY, "max_tokens": 10, "temperature": 1.5}
    all_five = random_client.completions.create(**request, n=5, logprobs=0).choices
    reply = random_client.completions.create(**request, n=2, best_of=5)

    def mean(choice) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    best = sorted(all_five, key=mean, reverse=True)[:2]
    assert [choice.text for choice in reply.choices] == [choice.text for choice in best]
    assert [choice.index for choice in reply.choices] == [0, 1] and reply.choices[0].logprobs is None
    assert reply.usage.completion_tokens == 50


def test_a_bias_bans_and_forces_tokens(client):
    request = {"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0}

    def text(**fields) -> str:
        return client.completions.create(**request, **fields).choices[0].text

    assert text(logit_bias={str(ord("d")): 100}) == "dddd"
    assert text(logit_bias={str(ord("c")): -100})[:2] == "b\0"  # all other tokens are equally likely
    assert text(logit_bias={str(ord("b")): 100}, presence_penalty=2.0) == "bbbb"
    with pytest.raises(openai.BadRequestError, match="logit_bias: expected token ids of 0 to 256, got 257"):
        text(logit_bias={"257": 1})
    with pytest.raises(openai.BadRequestError, match="prompt: expected token ids of 0 to 256, got -1"):
        client.completions.create(model="tiny", prompt=[-1])


def test_sixty_simultaneous_requests_are_served(serving, random_model):
    with serving(random_model) as server, client_of(server) as client, ThreadPoolExecutor(60) as pool:
        request = {**STORY, "max_tokens": 5}
        replies = list(pool.map(lambda seed: client.completions.create(**{**request, "seed": seed}), range(60)))
    assert {reply.usage.completion_tokens for reply in replies} == {5}


def test_a_shorter_context_than_that_of_the_model(serving, random_model):
    with serving(random_model, context_length=10) as server, client_of(server) as client:
        assert server.engine.context_length == 10
        assert client.completions.create(**{**STORY, "prompt": [1] * 8}).usage.completion_tokens == 3
        with pytest.raises(openai.BadRequestError, match="expected at most 10 tokens, got 11"):
            client.completions.create(**{**STORY, "prompt": "0123456789"})


def test_errors_become_the_exceptions_of_the_client(client):
    with pytest.raises(openai.BadRequestError, match="max_tokens: expected 1 to 200, got 0") as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=0)
    assert (caught.value.param, caught.value.type) == ("max_tokens", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="expected at most 256 tokens, got 258") as caught:
        client.completions.create(model="tiny", prompt="1" * 257, stream=True)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        client.completions.create(model="tiny", prompt="a", extra_body={"top_n": 1})
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'other'"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.APIStatusError, match="expected a body of at most 4,096 bytes, got 300") as caught:
        client.completions.create(model="tiny", prompt="1" * 3_000_000)
    assert caught.value.status_code == 413


def test_extreme_sampler_settings_work(random_client):
    for fields in (
        {"temperature": 0.001, "extra_body": {"repetition_penalty": 10}},
        {"temperature": 100, "extra_body": {"repetition_penalty": 0.1, "min_p": 1}},
        {"temperature": 1.0, "top_p": 0.001, "extra_body": {"top_k": 10**30}},
        {"temperature": math.ulp(2.0) + 2, "seed": 2**62},
    ):
        assert random_client.completions.create(**{**STORY, "max_tokens": 30, **fields}).usage.completion_tokens
