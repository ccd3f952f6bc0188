import json
import math
from http import HTTPStatus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.generation.config import SamplerConfig
from lm.serving.completion_request import ApiError, CompletionRequest, parse
from lm.serving.limits import Limits

LIMITS = Limits(max_tokens=100, choices=6)


def parsed(**fields) -> CompletionRequest:
    return parse(json.dumps({"model": "tiny", "prompt": "a"} | fields).encode(), "tiny", LIMITS)


def test_defaults_are_those_of_openai():
    request = parsed()
    sampler = SamplerConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    assert 0 <= request.seed < 2**32
    assert request == CompletionRequest(
        prompts=["a"],
        add_special_tokens=True,
        echo=False,
        max_tokens=16,
        sampler=sampler,
        n=1,
        best_of=1,
        seed=request.seed,
        stop=[],
        stream=False,
        include_usage=False,
        logprobs=None,
    )
    assert parsed(seed=None, temperature=None, stop=None, best_of=None, user=None, logprobs=None).sampler == sampler
    assert parse(b'{"prompt": ["a", ""]}', "tiny", LIMITS).prompts == ["a", ""]


def test_every_field_is_parsed():
    request = parsed(
        prompt=["a", "b"],
        max_tokens=100,
        temperature=0,
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-2,
        frequency_penalty=0.5,
        logit_bias={"5": -100, "7": 1.5},
        n=3,
        best_of=3,
        seed=7,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
        logprobs=0,
        echo=True,
        add_special_tokens=False,
        user="someone",
    )
    assert request == CompletionRequest(
        prompts=["a", "b"],
        add_special_tokens=False,
        echo=True,
        max_tokens=100,
        sampler=SamplerConfig(
            temperature=0.0,
            top_k=5,
            top_p=0.5,
            min_p=0.1,
            repetition_penalty=1.5,
            presence_penalty=-2.0,
            frequency_penalty=0.5,
            logit_bias={5: -100.0, 7: 1.5},
        ),
        n=3,
        best_of=3,
        seed=7,
        stop=["x"],
        stream=True,
        include_usage=True,
        logprobs=0,
    )


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "expected a string or an array of strings"),
        ({"prompt": []}, "prompt", "expected a string or an array of strings"),
        ({"prompt": 5}, "prompt", "expected a string or an array of strings, got 5"),
        ({"prompt": [1, "a"]}, "prompt", 'or an array of strings, got [1, "a"]'),
        ({"prompt": ["a", 1]}, "prompt", 'or an array of strings, got ["a", 1]'),
        ({"prompt": [1, True]}, "prompt", "token ids are one or several arrays of integers"),
        ({"prompt": [[1], []]}, "prompt", "expected at least one token id, got []"),
        ({"prompt": [[1], [2, [3]]]}, "prompt", "token ids are one or several arrays of integers"),
        ({"prompt": [[1], [1.0]]}, "prompt", "token ids are one or several arrays of integers"),
        ({"max_tokens": 0}, "max_tokens", "expected 1 to 100, got 0"),
        ({"max_tokens": 101}, "max_tokens", "expected 1 to 100, got 101"),
        ({"max_tokens": 1.0}, "max_tokens", "expected an integer, got 1.0"),
        ({"max_tokens": True}, "max_tokens", "expected an integer, got true"),
        ({"max_tokens": "5"}, "max_tokens", 'expected an integer, got "5"'),
        ({"temperature": -1}, "temperature", "expected 0 to 100, got -1"),
        ({"temperature": 0.0001}, "temperature", "expected 0, or 0.001 or more, got 0.0001"),
        ({"temperature": "hot"}, "temperature", "expected a number"),
        ({"temperature": math.nan}, "temperature", "expected 0 to 100, got NaN"),
        ({"temperature": 10**400}, "temperature", "expected 0 to 100, got 1000"),
        ({"top_p": 0}, "top_p", "expected 0.001 to 1, got 0"),
        ({"max_tokens": -1, "echo": True}, "max_tokens", "expected 0 to 100, got -1"),
        ({"top_k": -2}, "top_k", "expected 0 or more"),
        ({"min_p": 2}, "min_p", "expected 0 to 1"),
        ({"repetition_penalty": 1e-30}, "repetition_penalty", "expected 0.1 to 10, got 1e-30"),
        ({"repetition_penalty": math.inf}, "repetition_penalty", "expected 0.1 to 10"),
        ({"n": 7}, "n", "expected 1 to 6, got 7"),
        ({"n": 4, "prompt": ["a", "b"]}, "n", "n: 4 texts for each of 2 prompts are more than the 6 allowed"),
        ({"seed": -1}, "seed", "expected 0 to"),
        ({"seed": 2**63 - 1}, "seed", "expected 0 to"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 strings"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": [None]}, "stop", "expected a string or an array of strings, got [null]"),
        ({"stream": "yes"}, "stream", "expected true or false"),
        ({"stream": 1}, "stream", "expected true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "allowed only with stream: true"),
        ({"stream": True, "stream_options": {"include": True}}, "stream_options", "expected {include_usage"),
        ({"logprobs": 6}, "logprobs", "expected 0 to 5, got 6"),
        ({"echo": 1}, "echo", "expected true or false, got 1"),
        ({"best_of": 0}, "best_of", "expected 1 to 6, got 0"),
        ({"best_of": 2, "n": 3}, "best_of", "expected 3 to 6, got 2"),
        ({"best_of": 2, "stream": True}, "best_of", "not possible with stream: true"),
        ({"best_of": 4, "prompt": ["a", "b"]}, "best_of", "4 texts for each of 2 prompts are more than the 6 allowed"),
        ({"presence_penalty": 2.1}, "presence_penalty", "expected -2 to 2, got 2.1"),
        ({"frequency_penalty": math.nan}, "frequency_penalty", "expected -2 to 2, got NaN"),
        ({"logit_bias": [5]}, "logit_bias", "expected an object, got [5]"),
        ({"logit_bias": {"a": 1}}, "logit_bias", 'expected token ids with numbers, got {"a": 1}'),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "expected token ids with numbers"),
        ({"logit_bias": {"1": True}}, "logit_bias", "expected token ids with numbers"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "expected -100 to 100, got 101"),
        ({"add_special_tokens": "no"}, "add_special_tokens", "expected true or false"),
        ({"suffix": "x"}, "suffix", "not supported; leave it out"),
        ({"ignore_eos": True}, "ignore_eos", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "not supported"),
        ({"max_new_tokens": 5}, "max_new_tokens", "unknown field; the fields are model, prompt"),
    ],
)
def test_invalid_fields_are_refused_by_name(fields, param, message):
    with pytest.raises(ApiError) as caught:
        parsed(**fields)
    error = caught.value.body["error"]
    assert (caught.value.status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert str(caught.value).startswith(f"{param}: ")
    assert message in error["message"]


def test_prompts_may_be_token_ids():
    assert parsed(prompt=[1, 2]).prompts == [[1, 2]]
    assert parsed(prompt=[[1], [2, 3]]).prompts == [[1], [2, 3]]


def test_echo_allows_no_tokens_and_minus_one_disables_top_k():
    assert parsed(echo=True, max_tokens=0).max_tokens == 0
    assert parsed(top_k=-1).sampler.top_k == 0


def test_fields_of_other_servers_are_ignored_if_they_do_not_change_the_text():
    fields = {"cache_prompt": True, "request_id": "x", "min_tokens": 0, "ignore_eos": False, "typical_p": 1.0}
    fields |= {"skip_special_tokens": True, "stop_token_ids": [], "response_format": {"type": "text"}, "store": False}
    assert parsed(seed=1, **fields) == parsed(seed=1)


def test_a_request_may_not_exceed_the_capacity_of_the_server():
    few = Limits(choices=16, rows=2, waiting=1)
    assert parse(b'{"prompt": "a", "n": 3}', "tiny", few).n == 3
    with pytest.raises(ApiError, match="n: expected 1 to 3, got 4"):
        parse(b'{"prompt": "a", "n": 4}', "tiny", few)


def test_another_model_is_not_found():
    with pytest.raises(ApiError, match="model: expected 'tiny', got 'gpt-5'; this server has only one") as caught:
        parsed(model="gpt-5")
    assert (caught.value.status, caught.value.code) == (HTTPStatus.NOT_FOUND, "model_not_found")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "the body is not JSON: not UTF-8 at byte 0"),
        (b"[" * 100_000, "the body is not JSON: nested too deeply"),
        (b"9" * 10_000, "the body is not JSON: a number has thousands of digits"),
        (b'"text"', "the body must be a JSON object"),
        (b"[]", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
    ],
    ids=range(8),
)
def test_bodies_that_are_not_json_objects_are_refused(body, message):
    with pytest.raises(ApiError) as caught:
        parse(body, "tiny", LIMITS)
    assert (str(caught.value), caught.value.code) == (message, "invalid_json")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_NAMES = ["prompt", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "n", "seed"]
_NAMES += ["stop", "stream", "stream_options", "logprobs", "user", "model", "echo", "suffix", "best_of", "other"]
_NAMES += ["presence_penalty", "frequency_penalty", "logit_bias", "add_special_tokens", "min_tokens", "priority"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first example is slow on a busy machine
@given(st.dictionaries(st.sampled_from(_NAMES), _VALUES))
def test_any_body_is_parsed_or_refused(fields):
    try:
        request = parse(json.dumps(fields).encode(), "tiny", LIMITS)
    except ApiError as error:
        assert error.status in (400, 404)
        json.dumps(error.body)
    else:
        assert 0 <= request.max_tokens <= 100 and 1 <= request.n * len(request.prompts) <= 6
