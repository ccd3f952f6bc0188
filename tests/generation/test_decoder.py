import dataclasses
import gc
import signal
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lm.errors import UserError
from lm.generation.decoder import Decoder
from lm.generation.numba_decoder import NumbaDecoder, fastest_decoder, supports
from lm.model.config import ModelConfig
from lm.model.feed_forward import SiLU
from lm.model.norms import NormLayer
from lm.model.transformer import TransformerLM

PROJECT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 50

both = pytest.mark.parametrize("make_decoder", [Decoder, NumbaDecoder])

SWITCHES = {
    "default": {},
    "learned": {"position": "learned"},
    "no position": {"position": "none"},
    "layernorm": {"norm": "layernorm"},
    "no norm": {"norm": "none"},
    "post-norm": {"norm_position": "post"},
    "qk_norm": {"qk_norm": True},
    "two kv heads": {"num_kv_heads": 2},
    "one kv head": {"num_kv_heads": 1, "qk_norm": True},
    "tied": {"tie_embeddings": True},
    "silu": {"ffn": "silu"},
    "gpt2-like": {"position": "learned", "norm": "layernorm", "ffn": "silu", "tie_embeddings": True},
}

# What the step compiled by numba does not compute.
UNCOMPILED = {
    "relu_squared": {"ffn": "relu_squared"},
    "canon": {"canon": True},
    "canon, post-norm": {"canon": True, "norm_position": "post", "position": "none"},
}


def build(config: ModelConfig) -> TransformerLM:
    """Random weights, those of norms too; larger than at the start of a training, so that every part has a say."""
    torch.manual_seed(0)
    model = TransformerLM(config, VOCAB_SIZE).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln" in name or "norm" in name or "canon" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "position" in name:
                weight.mul_(30)
    return model


@torch.no_grad()
def plain_logits(model: TransformerLM, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor(ids))[-1]


@pytest.mark.parametrize("name", UNCOMPILED)
def test_the_compiled_step_leaves_layers_that_it_does_not_know_to_pytorch(name, small):
    model = build(dataclasses.replace(small, **UNCOMPILED[name]))
    assert not supports(model)
    assert type(fastest_decoder(model, num_rows=1)) is Decoder


@pytest.mark.parametrize(
    ("name", "make_decoder"),
    [*product(SWITCHES, [Decoder, NumbaDecoder]), *product(UNCOMPILED, [Decoder])],
)
def test_greedy_ids_and_logits_are_those_of_the_model_without_a_cache(name, make_decoder, small):
    model = build(dataclasses.replace(small, **{**SWITCHES, **UNCOMPILED}[name]))
    texts = [[7], [1, 2, 3, 4, 5], [9, 8, 7]]
    decoder = make_decoder(model, num_rows=3)
    logits = decoder.prefill([0, 1, 2], texts)
    while max(map(len, texts)) < model.config.context_length:
        expected = torch.stack([plain_logits(model, text) for text in texts])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert logits.argmax(-1).tolist() == expected.argmax(-1).tolist()
        new = expected.argmax(-1).tolist()
        texts = [[*text, token] for text, token in zip(texts, new)]
        logits = decoder.decode(new)
    assert decoder.lengths == [len(text) for text in texts]


@pytest.mark.parametrize(("make_decoder", "canon"), [(Decoder, False), (Decoder, True), (NumbaDecoder, False)])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_rows_come_and_go_without_a_trace_in_the_others(make_decoder, canon, data, small):
    """Prompts of any lengths, prefilled at any time into any rows, rows left out and taken again."""
    model = build(dataclasses.replace(small, num_layers=1, num_kv_heads=2, canon=canon))
    num_rows = data.draw(st.integers(1, 6))
    tokens = st.integers(0, VOCAB_SIZE - 1)
    prompts = st.lists(tokens, min_size=1, max_size=model.config.context_length)
    decoder = make_decoder(model, num_rows)
    texts: list[list[int]] = [[] for _ in range(num_rows)]
    for _ in range(6):
        if data.draw(st.booleans()):
            rows = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, unique=True))
            new = [data.draw(prompts) for _ in rows]
            logits = decoder.prefill(rows, new)
            for row, prompt in zip(rows, new):
                texts[row] = prompt
        else:
            fits = [0 < len(text) < model.config.context_length for text in texts]
            drawn = [data.draw(tokens) if fit and data.draw(st.booleans()) else None for fit in fits]
            rows = [row for row, token in enumerate(drawn) if token is not None]
            logits = decoder.decode(drawn)[rows]
            texts = [[] if token is None else [*text, token] for text, token in zip(texts, drawn)]
        for row, got in zip(rows, logits):
            torch.testing.assert_close(got, plain_logits(model, texts[row]), atol=1e-5, rtol=0)
        assert decoder.lengths == [len(text) for text in texts]


@pytest.mark.slow  # the compiler of C++ takes most of a minute
@pytest.mark.filterwarnings("ignore")  # torch.compile has many of its own
@pytest.mark.parametrize("canon", [False, True])
def test_the_step_that_pytorch_compiles_is_the_same(canon, small):
    model = build(dataclasses.replace(small, num_layers=1, num_kv_heads=2, canon=canon))
    texts = [[7], [1, 2, 3, 4, 5], [9, 8, 7]]
    decoder = Decoder(model, num_rows=3, compiled=True)
    logits = [decoder.prefill([0, 1, 2], texts)]
    for new in ([3, 1, 4], [1, 5], [None, 9], [None, 2]):
        logits.append(decoder.decode(new))
        texts = [[*text, token] if token is not None else [] for text, token in zip(texts, [*new, None, None])]
    torch.testing.assert_close(logits[-1][1], plain_logits(model, texts[1]), atol=1e-5, rtol=0)
    assert decoder.lengths == [0, 9, 0]


@both
@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_a_full_row_takes_no_more(position, make_decoder, small):
    decoder = make_decoder(build(dataclasses.replace(small, position=position)), num_rows=1)
    decoder.prefill([0], [[1] * 16])
    with pytest.raises(IndexError, match="row 0 is full"):
        decoder.decode([1])
    assert decoder.lengths == [16]


@both
def test_bfloat16_is_close(make_decoder, small):
    """The logits of weights that are rounded, and of those where every result is: 8 bits of mantissa."""
    model = build(small).to(torch.bfloat16)
    expected = plain_logits(build(small).to(torch.bfloat16).float(), [1, 2, 3, 4])
    decoder = make_decoder(model, num_rows=1)
    decoder.prefill([0], [[1, 2, 3]])
    assert (decoder.decode([4])[0].float() - expected).abs().max() < 0.03 * expected.abs().max()


def test_threads_share_a_step_without_a_difference(small):
    model = build(dataclasses.replace(small, num_kv_heads=2, d_ff=50))
    threads = torch.get_num_threads()
    logits = []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            decoder = NumbaDecoder(model, num_rows=5)
            decoder.prefill([0, 3], [[1, 2, 3], [4]])
            for token_id in range(5):
                new = decoder.decode([token_id, None, None, token_id, None])[[0, 3]]
            logits.append(new)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*logits)


def test_the_compiled_step_supports_the_cpu_in_float32_and_bfloat16(small):
    model = build(small)
    assert supports(model) and supports(model.to(torch.bfloat16))
    assert not supports(model.to(torch.float16))
    assert not supports(model.to("meta", torch.float32))


def test_prompts_of_more_tokens_than_a_step_reads(small):
    model = build(dataclasses.replace(small, num_kv_heads=2))
    texts = [[(7 * row + place) % VOCAB_SIZE for place in range(1 + row % 16)] for row in range(40)]
    decoder = NumbaDecoder(model, num_rows=40)
    assert sum(map(len, texts)) > 2 * decoder._plan.max_rows
    logits = decoder.prefill(range(40), texts)
    torch.testing.assert_close(logits, torch.stack([plain_logits(model, text) for text in texts]), atol=1e-5, rtol=0)


def test_what_an_earlier_text_has_left_does_not_matter(small):
    """Not even NaN, which times the probability 0 is NaN."""
    model = build(dataclasses.replace(small, context_length=70))
    decoder = NumbaDecoder(model, num_rows=2)
    keys, values = (array for array in decoder._plan._arrays if isinstance(array, torch.Tensor) and array.ndim == 4)
    keys.unflatten(-1, (-1, 32, 16))[..., : small.d_head, :] = torch.nan  # (..., panels, K rounded up, positions)
    values.fill_(torch.nan)
    texts = [[1, 2, 3], [4]]
    decoder.prefill([0, 1], texts)
    for step in range(66):
        texts = [[*text, step % VOCAB_SIZE] for text in texts]
        logits = decoder.decode([step % VOCAB_SIZE] * 2)
        if step in (0, 27, 28, 29, 60, 65):
            expected = torch.stack([plain_logits(model, text) for text in texts])
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


class ReLU(SiLU):
    """A feed-forward variant as somebody may add it: close to another one, and another all the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(self.w1(x).relu())


class ScaledNorm(NormLayer):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight / x.abs().mean(-1, keepdim=True)

    num_parameters = saved_bytes_per_token = backward_bytes_per_token = staticmethod(lambda *_: 0)


def change(model: TransformerLM, kind: str) -> None:
    layer = model.layers[1]
    match kind:
        case "feed-forward":
            layer.ffn.__class__ = ReLU if isinstance(layer.ffn, SiLU) else layer.ffn.__class__
        case "norm":
            layer.ln1 = ScaledNorm(32)
        case "epsilon":
            layer.ln1.eps = 0.1
        case "attention":
            layer.attn.__class__ = type("OtherAttention", (type(layer.attn),), {})
        case "position":
            model.config = dataclasses.replace(model.config, position="sinusoidal")
        case "new field":
            model.config = dataclasses.make_dataclass(
                "NewConfig", [("logit_softcap", float)], bases=(ModelConfig,), frozen=True, kw_only=True
            )(**vars(model.config), logit_softcap=30.0)


@pytest.mark.parametrize("kind", ["feed-forward", "norm", "epsilon", "attention", "position", "new field"])
def test_the_compiled_step_refuses_what_it_does_not_know_and_pytorch_decodes_it(kind, small):
    model = build(dataclasses.replace(small, ffn="silu"))
    assert isinstance(fastest_decoder(model, 1), NumbaDecoder)
    change(model, kind)
    assert not supports(model)
    decoder = fastest_decoder(model, num_rows=1)
    assert isinstance(decoder, Decoder)
    decoder.prefill([0], [[1, 2, 3]])
    torch.testing.assert_close(decoder.decode([4])[0], plain_logits(model, [1, 2, 3, 4]), atol=1e-5, rtol=0)


def test_the_threads_of_a_decoder_end_with_it_and_not_before(small):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    before = set(threading.enumerate())
    try:
        decoder = NumbaDecoder(build(small), num_rows=1)
    finally:
        torch.set_num_threads(threads)
    decoder.prefill([0], [[1]])
    expected = decoder.decode([2])
    time.sleep(0.3)  # they have gone to sleep meanwhile
    decoder.prefill([0], [[1]])
    assert torch.equal(decoder.decode([2]), expected)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del decoder
    gc.collect()
    assert not any(helper.is_alive() for helper in helpers)


def test_an_interrupted_step_is_done_all_the_same(small):
    """Ctrl-C reaches Python when the machine code has returned, and before anything else happens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        decoder = NumbaDecoder(build(small), num_rows=4)
    finally:
        torch.set_num_threads(threads)

    def texts() -> torch.Tensor:
        decoder.prefill([0, 1, 2, 3], [[1], [2], [3], [4]])
        return torch.stack([decoder.decode([token, 5, 6, 7]) for token in range(15)])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    expected = texts()
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        while interrupted < 20:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            try:
                for _ in range(100):
                    texts()
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for _ in range(10):
        assert torch.equal(texts(), expected)


@pytest.mark.slow  # a process of its own
def test_the_interpreter_ends_while_a_decoder_waits():
    program = """
import torch
from pathlib import Path
from lm import config
from lm.generation.numba_decoder import NumbaDecoder
from lm.model.transformer import TransformerLM
torch.set_num_threads(3)
decoder = NumbaDecoder(TransformerLM(config.load(Path("params.yaml")).model, 50), 1)
decoder.prefill([0], [[1]])
decoder.decode([2])
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PROJECT, timeout=60)


@both
def test_a_shorter_context_gives_the_same_logits_and_allocates_less(make_decoder, small):
    model = build(small)
    long, short = make_decoder(model, num_rows=2), make_decoder(model, num_rows=2, context_length=6)
    assert (long.context_length, short.context_length) == (small.context_length, 6)
    assert torch.equal(short.prefill([0], [[1, 2, 3, 4, 5]]), long.prefill([0], [[1, 2, 3, 4, 5]]))
    assert torch.equal(short.decode([6]), long.decode([6]))
    with pytest.raises(IndexError, match="row 0 is full: it holds context_length = 6 tokens"):
        short.decode([7])
    assert make_decoder(model, num_rows=1, context_length=10**6).context_length == small.context_length


@both
def test_a_cache_that_does_not_fit_is_refused_before_it_is_allocated(make_decoder, small):
    model = build(small)
    num_rows, tokens = 10**5, 2**24
    model.config = dataclasses.replace(small, context_length=tokens)  # only the size of the cache is taken from it
    needed = num_rows * tokens * 2 * small.num_layers * small.num_kv_heads * small.d_head * 4
    with pytest.raises(
        UserError, match=f"the key/value cache for 100000 texts of {tokens:,} tokens needs {needed:,} by"
    ):
        make_decoder(model, num_rows)
