import dataclasses
import json
import math
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import HTTPConnection

import openai
import pytest
import torch

from lm.errors import UserError
from lm.generation.batch import Batch, Request
from lm.generation.config import SamplerConfig
from lm.generation.decoder import Decoder
from lm.generation.generate import complete
from lm.serving.app import is_loopback
from lm.serving.server import open_server, serve
from tests.serving.conftest import eventually, running

STORY = {"model": "tiny", "prompt": "Once", "max_tokens": 40, "temperature": 1.0, "top_p": 0.95, "seed": 3}


@pytest.fixture(scope="module")
def random_server(serving, random_model):
    with serving(random_model, rows=4) as server:
        yield server


@pytest.fixture(scope="module")
def alphabet_server(serving, alphabet):
    with serving(alphabet, rows=2, waiting=2, choices=4, request_bytes=4096, max_tokens=200) as server:
        yield server


def client_of(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def random_client(random_server):
    with client_of(random_server) as client:
        yield client


@pytest.fixture(scope="module")
def client(alphabet_server):
    with client_of(alphabet_server) as client:
        yield client


def send(server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Message, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


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


def test_concurrent_requests_get_the_texts_they_would_get_on_their_own(random_server, random_client, random_model):
    requests = [
        {**STORY, "prompt": prompt, "seed": seed} for seed, prompt in enumerate(["a", "bcd", "Once upon", "", "?"])
    ]
    alone = [random_client.completions.create(**request).choices[0].text for request in requests]
    together = []

    def watch(*_: object) -> None:
        together.append(running(random_server))
        time.sleep(0.005)

    watching = random_model.lm_head.register_forward_pre_hook(watch)
    with ThreadPoolExecutor(5) as pool:
        texts = list(pool.map(lambda request: random_client.completions.create(**request).choices[0].text, requests))
    watching.remove()
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


def test_health(serving, alphabet):
    with serving(alphabet) as server:
        assert send(server, "GET", "/health")[::2] == (200, b'{"status": "ok"}')
        server.engine.close()
        status, _, body = send(server, "GET", "/health")
        assert (status, json.loads(body)["error"]["message"]) == (503, "the server has stopped")


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


def test_a_bug_is_a_server_error_without_details(serving, alphabet, monkeypatch, capsys):
    monkeypatch.setattr("lm.serving.app.parse", lambda *_: 1 / 0)
    with serving(alphabet) as server:
        status, headers, body = send(server, "POST", "/v1/completions", b"{}", Content_Type="application/json")
    assert (status, headers["X-Content-Type-Options"]) == (500, "nosniff")
    assert json.loads(body)["error"] == {
        "message": "the server has failed; its log says why", "type": "server_error", "param": None, "code": None
    }  # fmt: skip
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_half_of_a_surrogate_pair_in_an_error(alphabet_server):
    for body in (rb'{"\ud800": 1}', rb'{"prompt": "\ud800"}', rb'{"model": "\ud800"}'):
        status, _, reply = send(alphabet_server, "POST", "/v1/completions", body, Content_Type="application/json")
        assert status in (400, 404) and "d800" in json.loads(reply)["error"]["message"].lower()


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


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", "/v1/completions", b"{", {}, 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"{}", {"Content_Type": "text/plain"}, 415, "expected application/json"),
        ("GET", "/v1/completions", None, {}, 405, "expected POST, got GET"),
        ("DELETE", "/v1/models", None, {}, 405, "expected GET, got DELETE"),
        ("OPTIONS", "/v1/completions", None, {}, 405, "expected POST, got OPTIONS"),
        ("BREW", "/", None, {}, 501, "Unsupported method"),
        ("GET", "/v2", None, {}, 404, "/v2: not found; the paths are /, /v1/models, /v1/completions"),
        ("GET", "/../pyproject.toml", None, {}, 404, "not found"),
        ("POST", "/", b"", {"Content_Length": "-1"}, 400, "Content-Length: expected a number, got '-1'"),
        ("POST", "/v1/completions", b"", {"Content_Length": "9" * 18}, 413, "at most 4,096"),
        ("POST", "/", b"", {"Content_Length": "9" * 30}, 413, "expected a shorter body, got 9999"),
        ("POST", "/", b"", {"Content_Length": "5", "Transfer_Encoding": "chunked"}, 400, "not allowed together with"),
        ("GET", "/", None, {"Host": "a\u00e9"}, 421, "is not this machine"),
        ("GET", "/v1/models/other", None, {}, 404, "model: expected 'tiny', got 'other'"),
        ("GET", "/v1/models/", None, {}, 404, "/v1/models/: not found"),
        ("GET", "/a%0Ab", None, {}, 404, "/a\\nb: not found"),
        ("GET", "/", None, {"Host": "evil.example"}, 421, "'evil.example' is not this machine"),
        ("GET", "/", None, {"Host": "127.0.0.1.evil.example:80"}, 421, "is not this machine"),
        ("GET", "/", None, {"Host": "[::1"}, 421, "is not this machine"),
    ],
)
def test_invalid_requests_get_clear_errors(alphabet_server, method, path, body, headers, status, message):
    got, sent, reply = send(alphabet_server, method, path, body, **{"Content_Type": "application/json"} | headers)
    assert got == status
    assert sent["Content-Type"] == "application/json"
    assert not [name for name in sent if name.lower().startswith("access-control")]
    assert message in json.loads(reply)["error"]["message"]
    if status == 405:
        assert sent["Allow"] in ("GET", "POST")


def test_names_of_this_machine_are_accepted(alphabet_server):
    for host in ("localhost", "localhost:1", "127.0.0.1:9", "[::1]:80"):
        assert send(alphabet_server, "GET", "/v1/models", Host=host)[0] == 200
    assert is_loopback("::1") and is_loopback("127.9.9.9")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.0.1") and not is_loopback("")


def test_the_page_is_served(alphabet_server):
    status, headers, body = send(alphabet_server, "GET", "/?x=1")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"<title>tiny" in body
    status, headers, empty = send(alphabet_server, "HEAD", "/?x=1")
    assert (status, empty) == (200, b"")
    assert headers["Content-Length"] == str(len(body))


def test_a_connection_may_send_several_requests(alphabet_server):
    connection = HTTPConnection("127.0.0.1", alphabet_server.server_port, timeout=20)
    for path, status in (("/v1/models", 200), ("/nowhere", 404), ("/v1/models", 200)):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock is not None
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_row(serving, alphabet, slowed, stream):
    body = json.dumps({"prompt": "1", "max_tokens": 200, "temperature": 0, "stream": stream}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    steps = []
    counting = alphabet.lm_head.register_forward_pre_hook(lambda *_: steps.append(1))
    with serving(alphabet, rows=1) as server:
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(request + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert eventually(lambda: running(server) == 1)
        assert eventually(lambda: running(server) == 0)
    counting.remove()
    assert len(steps) < 200


def test_a_busy_server_asks_to_try_again_later(serving, alphabet, slowed):
    request = {"model": "tiny", "prompt": "1", "max_tokens": 200, "temperature": 0}
    with serving(alphabet, rows=1, waiting=0) as server, client_of(server) as client:
        with client.completions.create(**request, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(
                openai.InternalServerError, match="it generates 1 texts at a time, and 0 may wait; try again later"
            ) as caught:
                client.completions.create(**request)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["Retry-After"] == "1"
        assert eventually(lambda: running(server) == 0)
        assert client.completions.create(**{**request, "max_tokens": 2}).choices[0].text == "23"


def test_time_is_limited(serving, alphabet, slowed):
    request = {"model": "tiny", "prompt": "1", "max_tokens": 200, "temperature": 0}
    with serving(alphabet, rows=1, seconds=0.6) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError, match=r"not finished within 0\.6 seconds; ask for fewer tokens"):
            client.completions.create(**request)
        text = ""
        with pytest.raises(openai.APIError, match="ask for fewer tokens"):
            for chunk in client.completions.create(**request, stream=True):
                text += chunk.choices[0].text
        assert text.startswith("2345")


def test_waiting_time_is_limited(serving, alphabet, slowed):
    request = {"model": "tiny", "prompt": "1", "max_tokens": 200, "temperature": 0}
    with serving(alphabet, rows=1, seconds=0.3) as server, client_of(server) as client:
        greedy = SamplerConfig(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
        endless = Request(prompt_ids=[49], sampler=greedy, seed=0, max_new_tokens=10**6, stop_ids=frozenset())
        with server.engine.submit([endless]), pytest.raises(openai.InternalServerError, match="no row was free within"):
            client.completions.create(**request)


def test_clients_are_told_that_the_server_is_shutting_down(serving, alphabet, slowed):
    request = {"model": "tiny", "prompt": "1", "max_tokens": 200, "temperature": 0}
    with serving(alphabet, rows=1) as server, client_of(server) as client:
        stream = client.completions.create(**request, stream=True)
        next(iter(stream))
        server.engine.close()
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)


def test_extreme_sampler_settings_work(random_client):
    for fields in (
        {"temperature": 0.001, "extra_body": {"repetition_penalty": 10}},
        {"temperature": 100, "extra_body": {"repetition_penalty": 0.1, "min_p": 1}},
        {"temperature": 1.0, "top_p": 0.001, "extra_body": {"top_k": 10**30}},
        {"temperature": math.ulp(2.0) + 2, "seed": 2**62},
    ):
        assert random_client.completions.create(**{**STORY, "max_tokens": 30, **fields}).usage.completion_tokens


def serve_until_interrupted(server, wait: float = 0) -> None:
    """Call `serve`, and press Ctrl-C as soon as it responds."""

    def interrupt() -> None:
        send(server, "GET", "/v1/models")
        time.sleep(wait)
        signal.raise_signal(signal.SIGINT)

    # If a shell started the tests in the background, they ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    serve(server)
    thread.join()
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_server(served, random_model, capsys):
    with open_server("127.0.0.1", 0, served(random_model)) as server:
        serve_until_interrupted(server)
    output = capsys.readouterr()
    assert output.out == f"serving tiny at {server.url}, API at {server.url}v1; press Ctrl-C to stop\n"
    assert output.err.endswith("\nstopped\n") and "warning" not in output.err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.server_port))


def test_ctrl_c_tells_the_readers_of_streams(served, alphabet, slowed, capsys):
    chunks = []

    def read() -> None:
        with client_of(server) as client, pytest.raises(openai.APIError, match="the server is shutting down"):
            stream = client.completions.create(model="tiny", prompt="1", max_tokens=200, temperature=0, stream=True)
            chunks.append(next(stream))
            list(stream)

    with open_server("127.0.0.1", 0, served(alphabet)) as server:
        thread = threading.Thread(target=read)
        thread.start()
        serve_until_interrupted(server, wait=0.3)
        thread.join()
    assert chunks and capsys.readouterr().err.endswith("\nstopped\n")


def test_a_server_on_all_networks_warns(served, random_model, capsys):
    with open_server("0.0.0.0", 0, served(random_model)) as server:
        serve_until_interrupted(server)
    assert "anyone who can reach this address" in capsys.readouterr().err


def test_an_unavailable_port_is_a_one_line_error(alphabet_server, served, random_model):
    with pytest.raises(UserError, match=r"^a\\nb:0: cannot listen \(.*\); choose another --port or --host$"):
        open_server("a\nb", 0, served(random_model)).__enter__()
    port = alphabet_server.server_port
    message = rf"^127\.0\.0\.1:{port}: cannot listen \(.*in use.*\); choose another --port"
    with pytest.raises(UserError, match=message), open_server("127.0.0.1", port, served(random_model)):
        pass
