"""AdamW: eight passes over memory, or a single one where they are compiled."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lm.training.distributed import local


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g²
    p = p - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.compiled: Callable[..., None] | None = None

    def compile(self) -> None:
        """Let torch.compile make one pass of the update's eight; it works for some seconds at the first step."""
        self.compiled = torch.compile(_adamw, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """One step of `params`, those of `group` that have a gradient."""
        by_step: dict[int, list[Tensor]] = defaultdict(list)  # one entry, but for those without gradients at times
        for p in params:
            if not self.state[p]:
                self.state[p].update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            self.state[p]["step"] += 1
            by_step[self.state[p]["step"]].append(p)
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for t, params in by_step.items():
            # With c = sqrt(1 - beta2^t), m / (sqrt(v) / c + eps) is c m / (sqrt(v) + c eps).
            c = (1 - beta2**t) ** 0.5
            numbers = 1 - lr * group["weight_decay"], c * group["eps"], -lr * c / (1 - beta1**t)
            tensors = [
                tuple(map(local, (p, p.grad, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]))) for p in params
            ]
            if self.compiled:
                # As tensors: a number would be part of the kernel, and every step would be compiled.
                self.compiled(tensors, beta1, beta2, *map(torch.tensor, numbers))
            else:
                _adamw(tensors, beta1, beta2, *numbers)


def _adamw(
    tensors: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    beta1: float,
    beta2: float,
    decay: float | Tensor,
    eps: float | Tensor,
    rate: float | Tensor,
) -> None:
    """p = decay p + rate m / (sqrt(v) + eps) for every (p, g, m, v), after the moments m and v have taken in g."""
    for p, g, m, v in tensors:
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(decay).addcdiv_(m, v.sqrt().add_(eps).div_(rate))
