"""The limits of a server, clients that leave it, and its end."""

import json
import signal
import socket
import threading
import time

import openai
import pytest

from lm.errors import UserError
from lm.generation.batch import Request
from lm.generation.config import SamplerConfig
from lm.serving.server import open_server, serve
from tests.serving.conftest import client_of, eventually, running, send


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_row(serving, alphabet, slowed, before_each_step, stream):
    body = json.dumps({"prompt": "1", "max_tokens": 200, "temperature": 0, "stream": stream}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    steps = []
    before_each_step(lambda: steps.append(1))
    with serving(alphabet, rows=1) as server:
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(request + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert eventually(lambda: running(server) == 1)
        assert eventually(lambda: running(server) == 0)
    assert 0 < len(steps) < 200


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
