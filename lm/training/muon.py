"""Muon: momentum that is orthogonalized before it is applied to a matrix.

Shapes: N matrices, R rows, C columns.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lm.training.adamw import AdamW, decay, gradient
from lm.training.distributed import full_tensor, local, shard_like


class Muon(AdamW):
    """Muon (Jordan et al. 2024) for `matrices`, AdamW for the parameter groups `others`.

    m = momentum m + (1 - momentum) g          u = momentum m + (1 - momentum) g  (Nesterov)
    p = p - lr (0.2 sqrt(max(R, C)) orthogonalize(u) + weight_decay p)

    The factor gives an update the same root mean square as AdamW's, so that both can use the same learning rate and
    weight decay (Liu et al. 2025, section 2.2). The parameter group of the matrices is the one with a `momentum`.
    With `cautious`, only some coordinates decay: see `lm.training.adamw.decay`.
    `dtype` is used for the products that orthogonalize; bfloat16 is precise enough (Jordan et al. 2024), and faster on
    hardware that has it.

    Raises:
        ValueError: one of `matrices` does not have two dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        cautious: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        matrices = list(matrices)
        for p in matrices:
            if p.ndim != 2:
                raise ValueError(f"Muon updates matrices only, got a parameter of shape {tuple(p.shape)}")
        super().__init__([{"params": matrices, "momentum": momentum}, *others], lr, betas, eps, weight_decay, cautious)
        self.dtype = dtype

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if "momentum" not in group:
            super()._update(params, group)
            return
        momentum, lr = group["momentum"], group["lr"]
        # Matrices of the same shape (tall ones transposed) are orthogonalized together, which keeps every core busy.
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            m = self.state[p]["momentum_buffer"].lerp_(gradient(p), 1 - momentum)
            u = full_tensor(gradient(p).lerp(m, momentum))  # orthogonalizing a shard would give another result
            by_shape[tuple(sorted(p.shape))].append((p, u.T if p.shape[0] > p.shape[1] else u))
        for (_, columns), pairs in by_shape.items():
            directions = orthogonalize(torch.stack([u for _, u in pairs]), self.dtype)
            for (p, _), direction in zip(pairs, directions):
                direction = shard_like(direction.T if p.shape[0] > p.shape[1] else direction, p)
                decay(local(p), direction, 1 - lr * group["weight_decay"], self.cautious)
                local(p).add_(direction, alpha=-lr * 0.2 * columns**0.5)


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map each matrix of (N, R, C), R <= C, to about U Vᵀ, where U S Vᵀ is its singular value decomposition.

    Takes five steps of a Newton-Schulz iteration with an odd polynomial of degree five (Jordan et al. 2024), which
    changes only the singular values. The polynomial is steep at 0: singular values of at least 0.002 times the matrix's
    norm end between 0.68 and 1.2. More steps would bring them closer to 1, but do not improve training. The products
    are computed in `dtype`.

    Example: diag(3, 4) becomes diag(0.72, 1.12).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    norms = matrices.norm(dim=(-2, -1), keepdim=True)  # an upper bound of the singular values
    x = (matrices / norms.clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g²) x
    return x.to(matrices.dtype)
