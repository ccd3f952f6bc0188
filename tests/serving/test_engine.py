import dataclasses

import pytest

from lm.generation.batch import Batch, Request, Token
from lm.generation.config import SamplerConfig
from lm.generation.decoder import Decoder
from lm.serving.engine import Busy, Engine, Stopped, TokenStream

PLAIN = SamplerConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
SHORT = Request(prompt_ids=[1, 2, 3], sampler=PLAIN, seed=5, max_new_tokens=12, stop_ids=frozenset(), slide=False)
LONG = dataclasses.replace(SHORT, max_new_tokens=100)


def alone(model, request: Request) -> list[int | None]:
    batch = Batch(Decoder(model, num_rows=1))
    batch.add(request)
    ids = []
    while batch:
        ids.append(batch.step()[0].token_id)
    return ids


def read(stream: TokenStream, num_texts: int = 1) -> list[list[int | None]]:
    """Return all tokens of each text."""
    ids: list[list[int | None]] = [[] for _ in range(num_texts)]
    finished = 0
    while finished < num_texts:
        index, token = stream.get(timeout=10)
        ids[index].append(token.token_id)
        finished += token.finish is not None
    return ids


def arrived(stream: TokenStream) -> list[Token]:
    tokens = []
    while True:
        try:
            tokens.append(stream.get(timeout=0)[1])
        except TimeoutError:
            return tokens


def test_each_text_has_the_tokens_it_would_have_on_its_own(random_model):
    prompts = [[1], [7, 7], [3] * 9, [250, 4], [5, 6, 7]]
    requests = [dataclasses.replace(SHORT, prompt_ids=ids, seed=seed) for seed, ids in enumerate(prompts)]
    with Engine(random_model, num_rows=2, max_waiting=3) as engine, engine.submit(requests) as stream:
        assert read(stream, 5) == [alone(random_model, request) for request in requests]


def test_a_text_joins_while_another_is_running(random_model, slowed):
    with Engine(random_model, num_rows=2, max_waiting=0) as engine, engine.submit([LONG]) as first:
        first.get(timeout=10)
        with engine.submit([SHORT]) as second:
            read(second)
        assert 12 <= 1 + len(arrived(first)) < 100


def test_texts_without_a_reader_free_their_rows(random_model, slowed):
    with Engine(random_model, num_rows=1, max_waiting=2) as engine:
        with engine.submit([LONG, LONG]) as canceled:
            canceled.get(timeout=10)
            with engine.submit([SHORT]) as other, pytest.raises(TimeoutError):
                other.get(timeout=0.02)  # the only row is taken
        with engine.submit([SHORT]) as stream:
            assert read(stream) == [alone(random_model, SHORT)]
        assert len(arrived(canceled)) < 99


def test_one_text_of_a_stream_is_canceled(random_model, slowed):
    with Engine(random_model, num_rows=2, max_waiting=0) as engine, engine.submit([LONG, SHORT]) as stream:
        stream.cancel(0)
        indices = [stream.get(timeout=10)[0] for _ in range(12)]
        assert indices.count(1) >= 11  # a step may have been running


def test_a_reader_is_notified_of_each_step_and_of_ends(random_model):
    notices: list[bool] = []
    with Engine(random_model, num_rows=2, max_waiting=0) as engine:
        with engine.submit([SHORT, dataclasses.replace(SHORT, max_new_tokens=3)], notices.append) as stream:
            read(stream, 2)
        assert len(notices) in (12, 13) and notices.count(True) == 2  # the second text may begin one step later
        with engine.submit([LONG], notices.append):
            pass
        number = len(notices)
        with engine.submit([SHORT]) as stream:
            read(stream)
        assert len(notices) == number  # none after the reader has left


def test_requests_that_do_not_fit_are_all_refused(random_model, slowed):
    with Engine(random_model, num_rows=1, max_waiting=2) as engine, engine.submit([LONG]):
        with pytest.raises(Busy):
            engine.submit([SHORT] * 3)
        with engine.submit([SHORT] * 2), pytest.raises(Busy):
            engine.submit([SHORT])
        engine.submit([SHORT] * 2)  # the two that waited were canceled


def test_readers_are_told_that_the_engine_has_stopped(random_model, slowed):
    engine = Engine(random_model, num_rows=1, max_waiting=1)
    running, waiting = engine.submit([LONG]), engine.submit([LONG])
    running.get(timeout=10)
    engine.close()
    with pytest.raises(Stopped):
        read(running)
    with pytest.raises(Stopped):
        waiting.get(timeout=10)
    with pytest.raises(Stopped):
        engine.submit([SHORT])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_readers_are_told_that_the_model_has_failed(random_model, before_each_step):
    def fail() -> None:
        raise MemoryError

    before_each_step(fail)
    with (
        Engine(random_model, num_rows=1, max_waiting=0) as engine,
        engine.submit([SHORT]) as stream,
        pytest.raises(Stopped),
    ):
        stream.get(timeout=10)
