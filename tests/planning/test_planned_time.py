from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lm.errors import UserError
from lm.model.cost import training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.planning.devices import DEVICES, KnownDevice
from lm.planning.planned_time import (
    num_kernels,
    orthogonalization_flops,
    planned_time,
    planned_val_tokens,
)
from lm.training import muon
from lm.training.config import RunConfig
from lm.training.optimizer import make_optimizer, matrices
from lm.training.train_step import TrainStep

VOCAB_SIZE = 61
DAY = 24 * 60 * 60

# Operations that only look at a tensor differently, or allocate one, launch no kernel.
VIEWS = {
    *("_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh", "permute"),
    *("select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
}


@pytest.fixture
def device() -> KnownDevice:
    """1 GFLOP/s and 1 GB/s."""
    return KnownDevice(title="GPU", kind="cuda", float32=1e9, bfloat16=None, memory=1e9, bandwidth=1e9)


class Operations(TorchDispatchMode):
    """Counts the operations that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_worked_by_hand(run, runtime, device):
    planned = planned_time(run, VOCAB_SIZE, runtime, device, None)
    flops = 4 * 16 * training_flops_per_token(run.model, VOCAB_SIZE)
    assert planned.compute == pytest.approx(flops / 0.4e9)
    # The weights 4 + 23 times, the logits eleven times, and five times what a block saves for a token: two norms (33
    # floats each), the inputs of q, k, v and of the feed-forward layer, q, k, v and the result of attention, a factor
    # per head, and three hidden layers (two products, and the one that is multiplied by W2).
    saved = 4 * (2 * 33 + 2 * 32 + 4 * 32 + 4 + 3 * 48)
    assert planned.memory == pytest.approx((27 * 4 * 21472 + 64 * (5 * 2 * saved + 11 * 4 * VOCAB_SIZE)) / 1e9)
    assert planned.kernels == 2 * 100 + 50 + 8 * 21
    assert planned.launches == pytest.approx(planned.kernels * 10e-6)
    assert planned.step == planned.compute + planned.memory
    assert planned.largest_term == "compute"
    assert planned.tokens_per_second == pytest.approx(64 / planned.step)
    assert planned.seconds == pytest.approx(12 * planned.step)


def test_evaluations(run, runtime, device):
    planned = planned_time(run, VOCAB_SIZE, runtime, device, 3200)
    assert planned.num_evaluations == 4  # before the first step and after steps 4, 8 and 12
    # The val split is read twice, in windows and as whole documents, without a backward pass. 64 tokens are generated,
    # each with a third of a micro batch's 250 kernels.
    assert planned.evaluation == pytest.approx(6400 / 64 * planned.step / 3 + 64 * 250 / 3 * 10e-6)
    assert planned.seconds == pytest.approx(12 * planned.step + 4 * planned.evaluation)
    assert "of it for evaluations" in str(planned)
    unknown = str(planned_time(run, VOCAB_SIZE, runtime, device, None))
    assert "not counting 4 evaluations, because the size of the val split is unknown" in unknown


def test_the_largest_term(run, runtime, device):
    fast = replace(device, float32=1e15, bandwidth=1e15)
    planned = planned_time(run, VOCAB_SIZE, runtime, fast, None)
    assert planned.largest_term == "launches" and planned.step == planned.launches
    assert "launches is the largest term" in str(planned)
    slow = replace(device, float32=1e15, bandwidth=1e6)
    assert planned_time(run, VOCAB_SIZE, runtime, slow, None).largest_term == "memory"


def test_more_devices_share_the_batch_and_not_the_update(run, runtime, device):
    one = planned_time(run, VOCAB_SIZE, runtime, device, None)
    two = planned_time(run, VOCAB_SIZE, replace(runtime, num_processes=2), device, None)
    assert two.compute == pytest.approx(one.compute / 2)
    assert one.memory / 2 < two.memory < one.memory
    assert two.tokens_per_second < 2 * one.tokens_per_second
    assert "2 x GPU" in str(two) and "communication between the devices is not counted" in str(two)


def test_recomputed_activations_take_a_third_more(run, runtime, device):
    plain = planned_time(run, VOCAB_SIZE, runtime, device, None)
    recomputed = planned_time(run, VOCAB_SIZE, replace(runtime, checkpoint_activations=True), device, None)
    assert recomputed.compute == pytest.approx(4 / 3 * plain.compute)


def test_bfloat16_is_refused_where_it_is_missing(run, runtime):
    changed = replace(run, train=replace(run.train, precision="bfloat16"))
    with pytest.raises(UserError, match="train.precision: Tesla T4 does not support bfloat16; use float32"):
        planned_time(changed, VOCAB_SIZE, runtime, DEVICES["t4"], None)


@pytest.mark.parametrize("ffn", ["swiglu", "silu"])
def test_the_flops_of_muon_are_those_that_pytorch_counts(small, ffn):
    model = replace(small, ffn=ffn, num_kv_heads=2)
    with FlopCounterMode(display=False) as counter:
        for p in matrices(TransformerLM(model, VOCAB_SIZE).layers):
            muon.orthogonalize((p if p.shape[0] <= p.shape[1] else p.T).detach()[None])
    assert orthogonalization_flops(model) == counter.get_total_flops()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_the_number_of_kernels_is_about_that_of_operations(run, precision, num_micro_batches, monkeypatch):
    monkeypatch.setattr("lm.model.fused.products.prefers_float32", lambda: False)  # as on a GPU
    model = replace(run.model, num_layers=3)
    lm = TransformerLM(model, VOCAB_SIZE)
    step = TrainStep(lm, make_optimizer(lm, run.optim), precision=precision, max_grad_norm=1.0)
    ids = torch.zeros(num_micro_batches, 16, dtype=torch.int64)
    step(ids, ids, 1e-6, 1)  # makes the optimizer's state
    with Operations() as operations:
        step(ids, ids, 1e-6, 1)
    assert num_kernels(model, num_micro_batches, compile=False) == pytest.approx(operations.names.total(), rel=0.25)
    assert num_kernels(model, num_micro_batches, compile=True) < operations.names.total() / 3


def test_the_published_time_of_nanogpt(params, runtime):
    """nanoGPT's README: GPT-2 with 124M parameters, on one node of 8 A100 with 40 GB, in about 4 days.

    Its config/train_gpt2.py, which says about 5 days: 600,000 steps of 480 windows of 1,024 tokens, 12 at once, in
    bfloat16, compiled.
    """
    model = replace(
        params.model,
        d_model=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        d_ff=2048,  # for ffn: silu, a hidden layer of 3072
        context_length=1024,
        norm="layernorm",
        position="learned",
        ffn="silu",
        tie_embeddings=True,
    )
    train = replace(params.train, max_steps=600_000, batch_size=480, precision="bfloat16", short_fraction=0.0)
    run = RunConfig(model=model, optim=replace(params.optim, optimizer="adamw"), train=train)
    runtime = replace(runtime, num_processes=8, micro_batch_size=12, compile=True)
    a100 = replace(DEVICES["a100"], memory=40e9, bandwidth=1555e9)
    seconds = planned_time(run, 50_304, runtime, a100, None).seconds
    assert seconds == pytest.approx(4 * DAY, rel=0.15)


def test_the_measured_rate_of_the_default_model(params):
    """bench/README.md: 12,500 tokens per second on two cores with AVX2."""
    run = RunConfig(model=params.model, optim=params.optim, train=params.train)
    planned = planned_time(run, params.tokenizer.vocab_size, params.runtime, DEVICES["cpu-2"], None)
    assert planned.tokens_per_second == pytest.approx(12_500, rel=0.15)


def test_the_size_of_the_val_split(params):
    assert planned_val_tokens(replace(params.data, val_bytes=1000)) == 250
    tinystories = replace(params.data, source="tinystories", val_bytes=0)
    assert planned_val_tokens(tinystories) == 5_625_000
    files = replace(params.data, source="files", train_files=["a.txt"], val_bytes=0)
    assert planned_val_tokens(files) is None
