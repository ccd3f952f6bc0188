"""The kernels under Triton's interpreter, in a process of its own, and on a GPU where there is one.

The interpreter must be asked for before Triton is imported, for the whole process: `compute` is what that process does.
"""

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm.errors import UserError
from lm.model.fused.flash_attention import flash_attention

pytestmark = pytest.mark.slow

LENGTH = 150  # of no tile a multiple
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The norm of the error by that of the truth: float32's sums, and some roundings of 2^-9 on average in bfloat16.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2**-7}
NAMES = ["o", "dq", "dk", "dv"]
CASES = list(product(DTYPES, [16, 48], [False, True]))  # 48 is widened to 64


def inputs(dtype: str, d_head: int, with_documents: bool, length: int = LENGTH) -> tuple[list[Tensor], Tensor | None]:
    """q, k, v and the gradient of the output, and where the documents of two sequences start.

    One document starts at the last position of a tile: it is the next tile that goes on with it.
    """
    generator = torch.Generator().manual_seed(d_head)
    tensors = [torch.randn(2, length, 2, d_head, generator=generator).to(DTYPES[dtype]) for _ in range(4)]
    positions = torch.arange(length)
    starts = torch.stack([positions // 37 * 37, (positions >= 127) * 127])
    return [tensor.transpose(1, 2) for tensor in tensors], starts if with_documents else None


def truth(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, starts: Tensor | None) -> list[Tensor]:
    """NAMES by plain attention in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    positions = torch.arange(q.shape[-2], device=q.device)
    hidden = positions > positions.unsqueeze(-1)
    if starts is not None:
        hidden = hidden | (positions < starts[:, None, :, None])
    o = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), gradient.double())]


def relative_error(x: Tensor, true: Tensor) -> float:
    return ((x.double() - true).norm() / true.norm()).item()


def compute(file: Path) -> None:
    """Write NAMES of all CASES by the kernels on the CPU."""
    from triton.language import float32
    from triton.runtime.interpreter import InterpreterBuilder

    from lm.model.fused import flash_kernels

    create_dot = InterpreterBuilder.create_dot

    def create_dot_of_values(self, a, b, *rest):
        # The interpreter has bfloat16 as its bits, and would multiply these as whole numbers.
        a, b = (x if x.dtype.is_fp32() else self.cast_impl(x, float32) for x in (a, b))
        return create_dot(self, a, b, *rest)

    InterpreterBuilder.create_dot = create_dot_of_values
    results = {}
    for case in CASES:
        (q, k, v, gradient), starts = inputs(*case)
        o, log_sum_exp = flash_kernels.forward(q, k, v, starts)
        gradients = flash_kernels.backward(gradient, q, k, v, o, log_sum_exp, starts)
        for name, tensor in zip(NAMES, (o, *gradients), strict=True):
            results[f"{case} {name}"] = tensor.contiguous()
    save_file(results, file)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    pytest.importorskip("triton")
    file = tmp_path_factory.mktemp("interpreted") / "results.safetensors"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-W", "error", __file__, file], env=environment, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    return load_file(file)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_interpreted_kernels_equal_plain_attention(interpreted, case):
    tensors, starts = inputs(*case)
    for name, true in zip(NAMES, truth(*tensors, starts), strict=True):
        assert relative_error(interpreted[f"{case} {name}"], true) < TOLERANCE[case[0]], name


@pytest.mark.parametrize(("d_head", "dtype"), [(16, "float64"), (144, "float32")])
def test_what_the_kernels_cannot_do_is_refused(d_head, dtype):
    pytest.importorskip("triton")
    from lm.model.fused import flash_kernels

    x = torch.zeros(1, 1, 2, d_head, dtype=getattr(torch, dtype))
    with pytest.raises(UserError, match=f"got {d_head} in {dtype}; set it to sdpa"):
        flash_kernels.forward(x, x, x, None)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
@pytest.mark.parametrize("length", [1, 128, 150, 1000])
@pytest.mark.parametrize("d_head", [16, 32, 48, 64, 80, 128])
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_plain_attention(dtype, with_documents, d_head, length):
    tensors, starts = inputs(dtype, d_head, with_documents, length)
    q, k, v, gradient = (tensor.cuda() for tensor in tensors)
    starts = None if starts is None else starts.cuda()
    o = flash_attention(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), starts)
    results = [o.detach(), *torch.autograd.grad(o, (q, k, v), gradient)]
    for name, ours, true in zip(NAMES, results, truth(q, k, v, gradient, starts), strict=True):
        # A single position gives its score no gradient, to which an error could be relative.
        size = true.norm() if length > 1 else gradient.norm()
        assert (ours.double() - true).norm() < TOLERANCE[dtype] * size, name


@needs_gpu
def test_memory_is_linear_in_the_length():
    q, k, v = (torch.randn(1, 1, 65536, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3))
    flash_attention(q, k, v).sum().backward()  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    flash_attention(q, k, v).sum().backward()
    # O, dO, three gradients (and once more, where they are added to those there are), L and D: the scores are 8 GB.
    assert torch.cuda.max_memory_allocated() - before < 10 * q.nbytes


@needs_gpu
def test_a_document_does_not_depend_on_the_others():
    (q, k, v, _), starts = inputs("bfloat16", 64, True, 1000)
    before = flash_attention(q.cuda(), k.cuda(), v.cuda(), starts.cuda())
    for x in (q, k, v):
        x[0, :, 74:111] = 1.0
    after = flash_attention(q.cuda(), k.cuda(), v.cuda(), starts.cuda())
    same = (before == after).all(-1)  # (2, 2, 1000)
    assert same[1].all() and same[0, :, :74].all() and same[0, :, 111:].all() and not same[0, :, 74:111].any()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
