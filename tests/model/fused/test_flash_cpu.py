import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lm.model.attention import causal_attention, fastest_backend
from lm.model.fused import flash_attention as flash
from lm.model.fused.flash_attention import tiled_backward, tiled_forward
from lm.model.fused.flash_cpu import run

pytestmark = pytest.mark.skipif(not run.can_run(), reason="PyTorch does not use GNU's OpenMP here, or numba is missing")


def tensors(*shape: int, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """As the model makes them: (B, H, T, d) whose rows are not next to each other in memory."""
    torch.manual_seed(0)
    batch, heads, length, d = shape
    return [torch.randn(batch, length, heads, d).to(dtype).transpose(1, 2) for _ in range(count)]


# 16 rows make a tile of queries, 512 a tile of keys, and 16 numbers a vector.
@pytest.mark.parametrize("documents", [None, 37, 600])
@pytest.mark.parametrize("shape", [(2, 3, 1, 3), (1, 1, 16, 16), (2, 3, 77, 24), (1, 2, 530, 48), (1, 2, 1100, 32)])
def test_equals_the_tiles_in_float64_with_gradients(shape, documents):
    Q, K, V, dO = tensors(*shape, count=4)
    exact = [x.double() for x in (Q, K, V)]
    starts = torch.arange(shape[2]).repeat(shape[0], 1) // documents * documents if documents else None
    O, L = run.forward(Q, K, V, starts)
    true_O, true_L = tiled_forward(*exact, starts)
    torch.testing.assert_close(O.double(), true_O, rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(L.double(), true_L, rtol=1e-5, atol=3e-6)
    ours = run.backward(dO, Q, K, V, O, L, starts)
    truth = tiled_backward(dO.double(), *exact, true_O, true_L, starts)
    for gradient, true_gradient in zip(ours, truth):
        torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-5, atol=1e-5)


def test_rows_of_one_sequence_may_see_different_documents():
    Q, K, V = tensors(2, 2, 40, 8, count=3)
    starts = torch.stack([torch.zeros(40, dtype=torch.int64), torch.arange(40) // 13 * 13])
    O, _ = run.forward(Q, K, V, starts)
    torch.testing.assert_close(O[1:, :, 13:26], run.forward(*(x[1:, :, 13:26] for x in (Q, K, V)), None)[0])
    torch.testing.assert_close(O[:1], run.forward(Q[:1], K[:1], V[:1], None)[0])


def test_large_scores_do_not_overflow():
    Q, K, V = tensors(1, 1, 150, 8, count=3)
    O, L = run.forward(100 * Q, 100 * K, V, None)
    true_O, true_L = tiled_forward(100 * Q.double(), 100 * K.double(), V.double(), None)
    torch.testing.assert_close(O.double(), true_O, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(L.double(), true_L, rtol=1e-5, atol=0)


def test_bfloat16_is_rounded_to_the_nearest():
    Q, K, V = tensors(2, 2, 60, 16, count=3, dtype=torch.bfloat16)
    O, _ = run.forward(Q, K, V, None)
    wide, _ = run.forward(Q.float(), K.float(), V.float(), None)
    assert torch.equal(O, wide.bfloat16())


def test_bits_do_not_depend_on_the_number_of_threads():
    Q, K, V, dO = tensors(3, 5, 70, 16, count=4)
    results, threads = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            O, L = run.forward(Q, K, V, None)
            results.append([O, L, *run.backward(dO, Q, K, V, O, L, None)])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


def test_an_output_gradient_may_be_one_number_seen_everywhere():
    Q, K, V = (x.requires_grad_() for x in tensors(1, 2, 20, 8, count=3))
    ours = torch.autograd.grad(flash.flash_attention(Q, K, V).sum(), (Q, K, V))
    expanded = torch.nn.functional.scaled_dot_product_attention(Q, K, V, is_causal=True)
    truth = torch.autograd.grad(expanded.sum(), (Q, K, V))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_auto_is_flash_and_without_its_kernels_sdpa(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert fastest_backend("cpu") == "sdpa"
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert fastest_backend("cpu") == "flash"
    assert fastest_backend("cuda") == "sdpa"
    Q, K, V = tensors(1, 2, 20, 8, count=3)
    assert torch.equal(causal_attention(Q, K, V, "auto"), causal_attention(Q, K, V, "flash"))
    monkeypatch.setattr(run, "can_run", lambda: False)
    assert fastest_backend("cpu") == "sdpa"
    assert torch.equal(causal_attention(Q, K, V, "auto"), causal_attention(Q, K, V, "sdpa"))
    # flash itself takes the tiles in PyTorch.
    torch.testing.assert_close(causal_attention(Q, K, V, "flash"), causal_attention(Q, K, V, "sdpa"))


@pytest.mark.slow
def test_the_kernels_work_without_avx512():
    program = (
        "import torch; from lm.model.fused.flash_cpu import run;"
        "from lm.model.fused.flash_attention import tiled_forward;"
        "Q = torch.arange(2 * 2 * 40 * 24).reshape(2, 2, 40, 24).sin(); O, _ = run.forward(Q, Q, Q, None);"
        "torch.testing.assert_close(O, tiled_forward(Q, Q, Q, None)[0], rtol=1e-5, atol=1e-5)"
    )
    without = (
        "from llvmlite import binding; features = binding.get_host_cpu_features();"
        "narrow = {name: on and not name.startswith('avx512') for name, on in features.items()};"
        "binding.get_host_cpu_features = lambda: type(features)(narrow); binding.get_host_cpu_name = lambda: 'haswell';"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", without + program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
