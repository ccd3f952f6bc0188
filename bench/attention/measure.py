"""The attention implementations, and the measurement of one of them: time, FLOP/s, memory, and error."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.common.jobs import NotMeasured
from lm.model.attention import causal_attention
from lm.model.fused.flash_attention import flash_attention, tiled_backward, tiled_forward

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

PASSES = ["forward", "forward and backward"]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SDPA_KERNELS = {torch.bfloat16: SDPBackend.FLASH_ATTENTION, torch.float32: SDPBackend.EFFICIENT_ATTENTION}

_TOLERANCES = {torch.bfloat16: 2**-5, torch.float32: 1e-4}  # bfloat16 has 8 bits, and both sides round more than once
_TOKENS = {"cuda": 16_384, "cpu": 2_048}
_WIDTH = {"cuda": 2_048, "cpu": 256}
_MAX_TILED = 4_096  # on a GPU, the number of its kernel launches is quadratic in the sequence length
_MIN_CALLS, _MIN_SECONDS = 3, 0.2


@dataclass(frozen=True)
class Case:
    """What the systems are compared on: a row of a table."""

    dtype: str
    sequence_length: int
    d_head: int


class TiledAttention(torch.autograd.Function):
    """The tiles in PyTorch, also where `flash_attention` would use compiled kernels."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o, log_sum_exp = tiled_forward(q, k, v, None)
        ctx.save_for_backward(q, k, v, o, log_sum_exp)
        return o

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, o, log_sum_exp = ctx.saved_tensors
        return tiled_backward(gradient, q, k, v, o, log_sum_exp, None)


def systems(device: torch.device) -> dict[str, Attention]:
    return {"flash": flash_attention, "tiled": _tiled, "reference": _reference, "sdpa": sdpa}


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not q.is_cuda:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(SDPA_KERNELS[q.dtype]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.is_cuda and q.shape[-2] > _MAX_TILED:
        raise NotMeasured(f"not tried on sequences of more than {_MAX_TILED:,} tokens")
    return TiledAttention.apply(q, k, v)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return causal_attention(q, k, v, "reference")


def make_inputs(case: Case, device: torch.device) -> list[Tensor]:
    """Return q, k, v and the gradient of the output, (B, H, T, K), laid out as in the model: (B, T, H, K) in memory."""
    torch.manual_seed(0)
    batch = max(1, _TOKENS[device.type] // case.sequence_length)
    shape = batch, case.sequence_length, _WIDTH[device.type] // case.d_head, case.d_head
    tensors = [torch.randn(shape, device=device, dtype=DTYPES[case.dtype]) for _ in range(4)]
    return [tensor.transpose(1, 2).requires_grad_(i < 3) for i, tensor in enumerate(tensors)]


def call(attend: Attention, of_pass: str, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and, with the backward pass, the gradients of q, k and v."""
    q, k, v, gradient = inputs
    if of_pass == "forward":
        with torch.no_grad():
            return [attend(q, k, v)]
    o = attend(q, k, v)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), gradient)]


def measure(attend: Attention, of_pass: str, inputs: list[Tensor], expected: list[Tensor]) -> dict[str, float | None]:
    """Compare one implementation with the `expected` tensors, then time it.

    Raises:
        NotMeasured: its results differ from the expected ones.
    """
    q = inputs[0]
    max_error = largest_difference(call(attend, of_pass, inputs), expected)
    if not max_error <= _TOLERANCES[q.dtype]:
        raise NotMeasured(f"differs from sdpa by {max_error:.1e} of its largest value")
    run = partial(call, attend, of_pass, inputs)  # warm by now: compiled, and its memory is reserved
    seconds = _time_on_gpu(run) if q.is_cuda else _time_on_cpu(run)
    return {
        "milliseconds": 1e3 * seconds,
        "tflops": flops(q, of_pass) / seconds / 1e12,
        "peak_mb": _peak_bytes(run) / 1e6 if q.is_cuda else None,
        "max_error": max_error,
    }


def largest_difference(tensors: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference in any tensor, relative to the largest expected value in that tensor."""
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(tensors, expected, strict=True))


def flops(q: Tensor, of_pass: str) -> float:
    """Return the FLOPs of a pass.

    Q Kᵀ and P V take 2 T² K each per head, half of which is masked; the backward pass has five such products.
    """
    batch, heads, length, d_head = q.shape
    forward = 4 * batch * heads * length**2 * d_head / 2
    return forward if of_pass == "forward" else 3.5 * forward


def _time_on_gpu(run: Callable[[], Any]) -> float:
    """Return the median of the seconds between CUDA events around each call."""
    times: list[float] = []
    while len(times) < _MIN_CALLS or sum(times) < _MIN_SECONDS:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def _time_on_cpu(run: Callable[[], Any]) -> float:
    times: list[float] = []
    while len(times) < _MIN_CALLS or sum(times) < _MIN_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def _peak_bytes(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before
