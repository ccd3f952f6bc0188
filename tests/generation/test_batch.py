import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lm.generation.batch
from lm.errors import UserError
from lm.generation.batch import Batch, Request, Token
from lm.generation.decoder import Decoder
from lm.generation.sampling import distribution
from lm.model.transformer import TransformerLM

VOCAB_SIZE = 20


@pytest.fixture(scope="module")
def model(small) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(small, VOCAB_SIZE).eval()


@pytest.fixture(scope="module")
def request_(plain) -> Request:
    return Request(prompt_ids=[1, 2, 3], sampler=plain, seed=5, max_new_tokens=30, stop_ids=frozenset())


def alone(model: TransformerLM, request: Request) -> list[Token]:
    """Return the tokens that the request gets in a batch of its own."""
    batch = Batch(Decoder(model, num_rows=1))
    batch.add(request)
    tokens = []
    while batch:
        tokens.append(batch.step()[0])
    return tokens


def ids_of(tokens: list[Token]) -> list[int | None]:
    return [token.token_id for token in tokens]


@torch.no_grad()
def plain_greedy(model: TransformerLM, text: list[int], num_tokens: int) -> list[int]:
    new: list[int] = []
    for _ in range(num_tokens):
        new.append(int(model(torch.tensor([*text, *new])[-model.config.context_length :])[-1].argmax()))
    return new


@pytest.mark.parametrize("prompt", [[1, 2, 3], [4] * 16, list(range(20))])
def test_a_sliding_window_gives_the_tokens_of_an_argmax_loop(prompt, model, request_):
    greedy = replace(request_, prompt_ids=prompt, sampler=replace(request_.sampler, temperature=0.0))
    tokens = alone(model, greedy)
    assert ids_of(tokens) == plain_greedy(model, prompt, 30)
    assert [token.finish for token in tokens] == [None] * 29 + ["length"]


@pytest.mark.parametrize(("length", "num_tokens"), [(3, 14), (15, 2), (16, 1)])
def test_without_slide_a_text_ends_when_the_context_is_full(length, num_tokens, model, request_):
    """The model still predicts the token after a full context, but no more."""
    prompt = [1] * length
    fixed = replace(request_, prompt_ids=prompt, sampler=replace(request_.sampler, temperature=0.0), slide=False)
    tokens = alone(model, fixed)
    assert ids_of(tokens) == plain_greedy(model, prompt, num_tokens)
    assert tokens[-1].finish == "context"
    with pytest.raises(UserError, match="17 tokens, and the model sees 16"):
        Batch(Decoder(model, 1)).add(replace(fixed, prompt_ids=[1] * 17))


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_request_gives_the_same_tokens_in_any_batch(data, model, plain):
    """Requests with different lengths and samplers join at different times, and some are removed early."""
    any_request = st.builds(
        Request,
        prompt_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=18),
        sampler=st.builds(
            replace,
            st.just(plain),
            temperature=st.sampled_from([0.0, 0.5, 1.0]),
            top_k=st.sampled_from([0, 5]),
            top_p=st.sampled_from([0.9, 1.0]),
            min_p=st.sampled_from([0.0, 0.1]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
        ),
        seed=st.integers(0, 99),
        max_new_tokens=st.integers(1, 8),
        stop_ids=st.frozensets(st.integers(0, VOCAB_SIZE - 1), max_size=3),
        num_logprobs=st.sampled_from([None, 2]),
    )
    waiting = data.draw(st.lists(any_request, min_size=1, max_size=5))
    batch = Batch(Decoder(model, num_rows=3))
    running: dict[int, tuple[Request, list[Token]]] = {}
    while waiting or batch:
        while waiting and batch.num_free and (not batch or data.draw(st.booleans())):
            request = waiting.pop()
            running[batch.add(request)] = request, []
        for row, token in batch.step().items():
            request, tokens = running[row]
            tokens.append(token)
            is_removed = data.draw(st.integers(0, 9)) == 0
            if token.finish or is_removed:
                expected = alone(model, request)[: len(tokens)]
                assert ids_of(tokens) == ids_of(expected)
                assert [token.finish for token in tokens] == [token.finish for token in expected]
                batch.remove(row)


def test_tokens_are_drawn_from_the_models_distribution(model, request_):
    with torch.no_grad():
        expected = model(torch.tensor([1, 2, 3]))[-1].softmax(-1).double() * 2000
    batch = Batch(Decoder(model, num_rows=2000))
    for seed in range(2000):
        batch.add(replace(request_, seed=seed))
    counts = torch.bincount(torch.tensor(ids_of(list(batch.step().values()))), minlength=VOCAB_SIZE).double()
    # chi-squared with 19 degrees of freedom, p = 0.001
    assert ((counts - expected) ** 2 / expected).sum() < 43.8


def test_tokens_are_drawn_in_one_thread(model, request_, monkeypatch):
    """PyTorch's other threads would keep the processors from the decoder's."""
    seen = []

    def recorded(*args: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return distribution(*args)

    monkeypatch.setattr(lm.generation.batch, "distribution", recorded)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone(model, request_)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)
    assert set(seen) == {1}


def test_a_stop_token_ends_the_text(model, request_):
    greedy = replace(request_, sampler=replace(request_.sampler, temperature=0.0))
    first, second, third = plain_greedy(model, [1, 2, 3], 3)
    assert len({first, second, third}) == 3
    tokens = alone(model, replace(greedy, stop_ids=frozenset([third])))
    assert tokens == [Token(token_id=first), Token(token_id=second), Token(token_id=third, finish="stop")]


def test_log_probabilities_are_the_models_own(model, request_):
    """The samplers do not change them."""
    sampler = replace(request_.sampler, temperature=0.3, top_k=4, repetition_penalty=1.5)
    tokens = alone(model, replace(request_, sampler=sampler, max_new_tokens=5, num_logprobs=3))
    text = [1, 2, 3]
    for token in tokens:
        with torch.no_grad():
            probabilities = model(torch.tensor(text))[-1].softmax(-1).tolist()
        assert math.exp(token.logprob) == pytest.approx(probabilities[token.token_id], rel=1e-4)
        likeliest = sorted(range(VOCAB_SIZE), key=lambda i: -probabilities[i])[:3]
        assert [token_id for token_id, _ in token.top] == likeliest
        assert [math.exp(logprob) for _, logprob in token.top] == pytest.approx(
            [probabilities[i] for i in likeliest], rel=1e-4
        )
        text.append(token.token_id)


def test_a_diverged_model_gives_no_token(small, request_):
    model = TransformerLM(small, VOCAB_SIZE)
    model.lm_head.weight.data.fill_(float("nan"))
    assert alone(model, request_) == [Token(token_id=None, finish="diverged")]


def test_a_batch_has_one_row_per_text(model, request_):
    batch = Batch(Decoder(model, num_rows=2))
    assert not batch and batch.num_free == 2
    assert [batch.add(request_), batch.add(request_)] == [0, 1]
    with pytest.raises(IndexError, match="no row is free"):
        batch.add(request_)
    batch.remove(0)
    batch.remove(0)
    assert batch.add(request_) == 0
    with pytest.raises(UserError, match="no tokens"):
        batch.add(replace(request_, prompt_ids=[]))


@pytest.mark.parametrize("max_new_tokens", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 16])
def test_a_prompt_is_scored_as_by_the_model(length, max_new_tokens, model, request_, monkeypatch):
    monkeypatch.setattr("lm.generation.batch._SCORED_AT_ONCE", 4)
    ids = [(7 * number) % VOCAB_SIZE for number in range(length)]
    request = replace(request_, prompt_ids=ids, num_logprobs=2, max_new_tokens=max_new_tokens, score_prompt=True)
    first, *rest = alone(model, request)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).log_softmax(-1)
    assert first.prompt is not None and [token.token_id for token in first.prompt] == ids
    assert first.prompt[0] == Token(token_id=ids[0])
    for token, row in zip(first.prompt[1:], expected):
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-5)
        assert [id for id, _ in token.top] == row.topk(2).indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-5)
    if max_new_tokens:
        unscored = alone(model, replace(request, score_prompt=False))
        assert [replace(first, prompt=None), *rest] == unscored
    else:
        assert (first.token_id, first.finish, rest) == (None, "length", [])


def test_texts_without_new_tokens_do_not_disturb_others(model, request_):
    scored = replace(request_, max_new_tokens=0, num_logprobs=1, score_prompt=True)
    batch = Batch(Decoder(model, num_rows=2))
    row = batch.add(request_)
    ids = [batch.step()[row].token_id for _ in range(3)]
    for _ in range(3):
        other = batch.add(scored)
        tokens = batch.step()
        ids.append(tokens[row].token_id)
        assert tokens[other].finish == "length" and batch.num_free == 1
    while batch:
        ids.append(batch.step()[row].token_id)
    assert ids == ids_of(alone(model, request_))


def test_a_prompt_of_a_diverged_model_has_no_scores(model, request_):
    with torch.no_grad():
        before = model.lm_head.weight.clone()
        model.lm_head.weight[0, 0] = math.nan
    for max_new_tokens in (0, 5):
        request = replace(request_, max_new_tokens=max_new_tokens, num_logprobs=1, score_prompt=True)
        assert [token.finish for token in alone(model, request)] == ["diverged"]
    with torch.no_grad():
        model.lm_head.weight.copy_(before)


def test_penalties_and_bias_depend_only_on_the_text(model, request_):
    sampler = replace(request_.sampler, presence_penalty=1.5, frequency_penalty=0.5, logit_bias={3: 2.0})
    requests = [replace(request_, sampler=sampler, seed=seed, slide=False) for seed in range(3)]
    batch = Batch(Decoder(model, num_rows=3))
    texts: dict[int, list[int | None]] = {batch.add(request): [] for request in requests}
    while batch:
        for row, token in batch.step().items():
            texts[row].append(token.token_id)
    assert list(texts.values()) == [ids_of(alone(model, request)) for request in requests]


def test_the_separator_in_front_of_a_prompt_is_not_a_repetition(model, request_):
    penalized = replace(request_, sampler=replace(request_.sampler, repetition_penalty=1.5, temperature=0.0))
    with_separator = replace(penalized, prompt_ids=[7, 1], stop_ids=frozenset([7]), max_new_tokens=1)
    with torch.no_grad():
        logits = model(torch.tensor([7, 1]))[-1]
    expected = distribution(logits, torch.tensor([1]), penalized.sampler).argmax()
    assert ids_of(alone(model, with_separator)) == [expected]
    only_separator = replace(with_separator, prompt_ids=[7])
    with torch.no_grad():
        assert ids_of(alone(model, only_separator)) == [model(torch.tensor([7]))[-1].argmax()]
