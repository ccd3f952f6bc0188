import json
import math

import pytest

from lm.generation.batch import Token
from lm.serving.completion import Completion
from lm.serving.completion_request import ApiError, parse
from lm.serving.limits import Limits


@pytest.fixture
def completion(tokenizer):
    def completion(context_length: int = 16, **fields) -> Completion:
        request = parse(json.dumps({"prompt": "a"} | fields).encode(), "tiny", Limits())
        return Completion(request, "tiny", tokenizer, context_length)

    return completion


def tokens(data: bytes, finish: str | None = None) -> list[Token]:
    """Make each byte a token of probability 1/2, with x as the next most likely; `finish` is that of the last."""
    rest = [Token(token_id=byte, logprob=math.log(0.5), top=[(byte, math.log(0.5)), (120, -2.0)]) for byte in data]
    if finish:
        last = rest.pop()
        rest.append(Token(token_id=last.token_id, logprob=last.logprob, top=last.top, finish=finish))
    return rest


def feed(completion: Completion, generated: list[Token]) -> list[tuple]:
    """Return the text, the tokens and the finish reason of each chunk."""
    chunks = [chunk for token in generated if (chunk := completion.feed(0, token))]
    return [(c["text"], c["logprobs"]["tokens"], c["finish_reason"]) for (c,) in (x["choices"] for x in chunks)]


def test_the_texts_of_a_prompt_have_consecutive_seeds(completion):
    requests = completion(prompt=["ab", ""], n=2, seed=7, max_tokens=9, logprobs=3).requests
    assert [(request.prompt_ids, request.seed) for request in requests] == [
        ([256, 97, 98], 7), ([256, 97, 98], 8), ([256], 7), ([256], 8),
    ]  # fmt: skip
    assert {(r.max_new_tokens, r.num_logprobs, r.stop_ids, r.slide) for r in requests} == {
        (9, 3, frozenset([256]), False)
    }


def test_a_chunk_contains_the_tokens_of_its_text(completion):
    generated = tokens("aé😀".encode() + b"\xe2", finish="length")
    assert feed(completion(logprobs=2), generated) == [
        ("a", ["a"], None),
        ("é", [r"bytes:\xc3", r"bytes:\xa9"], None),
        ("😀", [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80"], None),
        ("\ufffd", [r"bytes:\xe2"], "length"),
    ]


def test_the_tokens_of_a_stop_string_are_dropped(completion):
    stopped = completion(logprobs=0, stop="END")
    assert feed(stopped, tokens(b"aENbEND")) == [("a", ["a"], None), ("ENb", ["E", "N", "b"], None), ("", [], "stop")]
    assert stopped.is_finished
    assert stopped.feed(0, tokens(b"x")[0]) is None
    assert stopped.usage == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}


@pytest.mark.parametrize(("finish", "reason"), [("length", "length"), ("context", "length"), ("stop", "stop")])
def test_finish_reasons(completion, finish, reason):
    *_, last = feed(completion(logprobs=0), [*tokens(b"a"), Token(token_id=256, logprob=-1.0, top=[], finish=finish)])
    assert last == ("" if finish == "stop" else "<|endoftext|>", [] if finish == "stop" else ["<|endoftext|>"], reason)


def test_a_complete_response_joins_its_chunks(completion):
    made = completion(prompt=["a", "b"], logprobs=1)
    chunks = [chunk for token in tokens("hé".encode(), finish="length") if (chunk := made.feed(1, token))]
    chunks += [chunk for token in tokens(b"xy", finish="length") if (chunk := made.feed(0, token))]
    whole = made.join(chunks)
    assert [choice["text"] for choice in whole["choices"]] == ["xy", "hé"]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length", "length"]
    half = math.log(0.5)
    assert whole["choices"][1]["logprobs"] == {
        "tokens": ["h", r"bytes:\xc3", r"bytes:\xa9"],
        "token_logprobs": [half] * 3,
        "top_logprobs": [{"h": half, "x": -2.0}, {r"bytes:\xc3": half, "x": -2.0}, {r"bytes:\xa9": half, "x": -2.0}],
        "text_offset": [0, 1, 1],
    }
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


def test_logprobs_are_null_unless_requested(completion):
    chunk = completion().feed(0, Token(token_id=97))
    assert chunk["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]


def test_invalid_prompts_are_refused(completion):
    completion(prompt="a" * 15)
    completion(prompt="a" * 16, add_special_tokens=False)
    with pytest.raises(ApiError, match="prompt: expected at most 16 tokens, got 17; shorten it") as caught:
        completion(prompt="a" * 16)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(ApiError, match="half of a surrogate pair"):
        completion(prompt="\ud800")


def test_a_diverged_model_is_a_server_error(completion):
    with pytest.raises(ApiError, match="not finite") as caught:
        completion().feed(0, Token(token_id=None, finish="diverged"))
    assert (caught.value.status, caught.value.body["error"]["type"]) == (500, "server_error")
