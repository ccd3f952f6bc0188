import dataclasses
import gc
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch._C._profiler import RecordScope, _ExperimentalConfig
from torch.autograd import (
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    _disable_profiler,
    _enable_profiler,
    _prepare_profiler,
)

from lm.model.transformer import TransformerLM
from lm.planning.memory_estimate import training_bytes
from lm.training.optimizer import make_optimizer
from lm.training.train_step import TrainStep

VARIANTS = [
    {},
    {"norm": "layernorm"},
    {"norm": "none"},
    {"norm_position": "post"},
    {"position": "learned"},
    {"position": "none"},
    {"qk_norm": True},
    {"ffn": "silu"},
    {"ffn": "relu_squared"},
    {"canon": True},
    {"canon": True, "norm": "none"},
    {"canon": True, "norm_position": "post"},
    {"num_kv_heads": 2},
    {"tie_embeddings": True},
]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that PyTorch's CPU allocator holds of what it has given out since `work` began.

    The profiler is told of every block, those inside of operators included. Its public face would spend twenty times as
    long on sorting the operators.
    """
    gc.collect()  # or what earlier calls have left may be freed during this one
    config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig())  # of memory
    _prepare_profiler(config, {ProfilerActivity.CPU})
    _enable_profiler(config, {ProfilerActivity.CPU}, {RecordScope.USER_SCOPE})
    try:
        work()
    finally:
        events = _disable_profiler().events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]  # negative where a block is freed
    return max(accumulate(sizes))


def choose_library(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    monkeypatch.setattr("lm.model.fused.products.prefers_onednn", lambda: onednn)
    monkeypatch.setattr("lm.planning.memory_estimate.prefers_onednn", lambda: onednn)


def saved_bytes(model: TransformerLM, inputs: torch.Tensor, precision: str) -> int:
    """Bytes of the tensors that autograd keeps after the forward pass, without parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        model.hidden(inputs)
    return sum(saved.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["sdpa", "flash", "reference"])
@pytest.mark.parametrize("changes", VARIANTS)
def test_activations_are_what_autograd_saves(small, changes, backend, precision):
    config = dataclasses.replace(small, d_model=64, d_ff=160, context_length=32, **changes)
    inputs = torch.zeros(8, 32, dtype=torch.long)
    predicted = training_bytes(config, 999, 8, precision, attention_backend=backend)
    expected = predicted["activations"] + predicted["bfloat16_weights"] - inputs.nbytes  # the targets
    measured = saved_bytes(TransformerLM(config, 999, backend), inputs, precision)
    if precision == "bfloat16":  # not counted: tables of rope in bfloat16
        assert expected == pytest.approx(measured, rel=0.08)
    else:
        masks = config.num_layers * 32 * 32 if backend == "reference" else 0
        padding = 2 * config.num_layers * 8 * 3 * 4 * 64 if config.canon else 0  # three positions before each window
        assert expected == measured - masks - padding


def test_peak_of_a_known_sequence():
    def work() -> torch.Tensor:
        a, b = torch.empty(1000), torch.empty(2000)  # 4,000 and 8,000 bytes
        del a
        c = torch.empty(3000)  # 20,000 held
        del b, c
        return torch.ones(1500, dtype=torch.float64).sum().sqrt()  # 12,000 and two numbers

    assert peak_bytes(work) == 20_000
    assert peak_bytes(lambda: (work(), torch.zeros(5001))) == 20_004 + 8  # with the result of `work`


def assert_peak_is_predicted(config, vocab_size, micro_batch_size, precision, optim, **arguments):
    """Compare with two steps, since the optimizer's state exists after the first; return the phase of the peak."""
    predicted = training_bytes(config, vocab_size, micro_batch_size, precision, **arguments)
    batch_size = micro_batch_size * arguments.pop("num_micro_batches", 1)
    inputs = torch.zeros(batch_size, config.context_length, dtype=torch.long)
    cautious = arguments.pop("cautious_weight_decay", False)
    optimizer = arguments.pop("optimizer", "adamw")
    optim = dataclasses.replace(optim, optimizer=optimizer, cautious_weight_decay=cautious)

    def train() -> None:
        model = TransformerLM(config, vocab_size, **arguments)
        optimizer = make_optimizer(model, optim)
        train_step = TrainStep(model, optimizer, precision=precision, max_grad_norm=1.0)
        for _ in range(2):
            train_step(inputs, inputs, 1e-3, micro_batch_size)

    assert sum(predicted.values()) == pytest.approx(peak_bytes(train), rel=0.15)
    return list(predicted)[-1]


STEPS = [
    {},
    {"attention_backend": "flash"},
    {"attention_backend": "reference"},
    {"attention_backend": "reference", "checkpoint_activations": True},
    {"checkpoint_activations": True},
    {"optimizer": "muon"},
    {"num_micro_batches": 2},
]


# Many CPUs take long in bfloat16, whose activations are those of the test above.
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("changes", VARIANTS)
def test_peak_of_each_variant(params, changes, precision):
    config = dataclasses.replace(params.model, context_length=64, **changes)
    assert_peak_is_predicted(config, params.tokenizer.vocab_size, 4, precision, params.optim)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("arguments", STEPS)
def test_peak_of_each_kind_of_step(params, arguments, precision):
    config = dataclasses.replace(params.model, context_length=128, num_layers=2)
    assert_peak_is_predicted(config, params.tokenizer.vocab_size, 4, precision, params.optim, **arguments)


@pytest.mark.parametrize("onednn", [True, False])
def test_peak_by_either_library_of_products(params, monkeypatch, onednn):
    choose_library(monkeypatch, onednn)
    phase = assert_peak_is_predicted(params.model, params.tokenizer.vocab_size, 4, "float32", params.optim)
    assert phase == "loss"


# A quarter of the widths of the shape with 17 million parameters.
@pytest.mark.parametrize(
    ("micro_batch_size", "precision"),
    [(4, "float32"), (4, "bfloat16"), (8, "float32"), pytest.param(8, "bfloat16", marks=pytest.mark.slow)],
)
def test_peak_of_a_wider_shape(params, micro_batch_size, precision):
    config = dataclasses.replace(params.model, d_model=128, d_ff=336, num_layers=2)
    assert_peak_is_predicted(config, 2500, micro_batch_size, precision, params.optim)


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_peak_of_few_tokens_is_in_the_step(params, optimizer, cautious):
    sizes = {"num_layers": 1, "d_model": 256, "num_heads": 8, "num_kv_heads": 8, "d_ff": 768, "context_length": 8}
    config = dataclasses.replace(params.model, **sizes)
    arguments = {"optimizer": optimizer, "cautious_weight_decay": cautious}
    assert assert_peak_is_predicted(config, 2000, 1, "float32", params.optim, **arguments) == "step"


def test_peak_of_recomputed_scores_is_in_the_backward_pass(params):
    arguments = {"attention_backend": "reference", "checkpoint_activations": True}
    assert assert_peak_is_predicted(params.model, 300, 2, "float32", params.optim, **arguments) == "backward"
