"""Compare FlashAttention-2 with PyTorch's attention in float64: the output and the gradients of q, k and v.

    python -m bench.attention.errors [--device cuda]

An error is the norm of the difference relative to the norm of the expected tensor. The exit status is 1 if one of them
is larger than rounding explains.
"""

import sys

import torch

from bench.common.arguments import make_parser
from lm.device import pick_device
from lm.errors import exit_cleanly
from lm.model.fused.flash_attention import flash_attention

_MAX_ERRORS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_LENGTHS = [128, 300, 1024]
_D_HEADS = [16, 32, 64, 128]


def main() -> None:
    parser = make_parser("bench.attention.errors", __doc__)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    device = pick_device(parser.parse_args().device)
    is_exact = True
    print("| dtype | sequence_length | d_head | output | gradient of q | of k | of v |", "| --- " * 7 + "|", sep="\n")
    for dtype, max_error in _MAX_ERRORS.items():
        for length in _LENGTHS:
            for d_head in _D_HEADS:
                found = errors(dtype, length, d_head, device)
                is_exact = is_exact and max(found) <= max_error
                cells = [str(dtype).removeprefix("torch."), length, d_head, *(f"{error:.1e}" for error in found)]
                print(f"| {' | '.join(map(str, cells))} |")
    if not is_exact:
        sys.exit("an error is larger than rounding explains")


def errors(dtype: torch.dtype, length: int, d_head: int, device: torch.device) -> list[float]:
    """Return the errors of the output and of the three gradients, for random inputs (2, 3, length, d_head)."""
    torch.manual_seed(1)
    inputs = [torch.randn(2, 3, length, d_head, device=device).to(dtype).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weights = torch.randn(2, 3, length, d_head, device=device)
    out = flash_attention(*inputs)
    q, k, v = exact
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    gradients = torch.autograd.grad((out.float() * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), exact)
    pairs = zip([out, *gradients], [expected, *expected_gradients], strict=True)
    return [((x.double() - y).norm() / y.norm()).item() for x, y in pairs]


if __name__ == "__main__":
    exit_cleanly(main)
