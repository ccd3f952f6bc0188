"""AdamW: eight passes over memory, or one where torch.compile fuses them."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from lm.training.distributed import local


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g²
    p = p - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)

    With `cautious`, only some coordinates decay: see `decay`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        cautious: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.cautious = cautious
        self.compiled: Callable[..., None] | None = None

    def compile(self) -> None:
        """Let torch.compile fuse the eight passes of a step into one; the first step then takes a few seconds."""
        self.compiled = torch.compile(_adamw, dynamic=False)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

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
        """Update `params`, the parameters of `group` that have a gradient."""
        by_step: dict[int, list[Tensor]] = defaultdict(list)  # one key, unless some had no gradient in earlier steps
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
                (local(p), local(gradient(p)), local(self.state[p]["exp_avg"]), local(self.state[p]["exp_avg_sq"]))
                for p in params
            ]
            if self.compiled:
                # Passed as tensors, because torch.compile would recompile for every new value of a number.
                self.compiled(tensors, beta1, beta2, *map(torch.tensor, numbers), self.cautious)
            else:
                _adamw(tensors, beta1, beta2, *numbers, self.cautious)


def gradient(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    if p.grad is None:
        raise ValueError(f"expected a gradient for the parameter of shape {tuple(p.shape)}")
    return p.grad


def decay(p: Tensor, update: Tensor, factor: float | Tensor, cautious: bool) -> None:
    """Multiply the parameter `p` by `factor`, in place. The step then subtracts a positive multiple of `update`.

    With `cautious`, only the coordinates where update · p >= 0, those that the update also moves toward 0, are
    multiplied. Weight decay then does not work against the update (Chen et al. 2025, Cautious Weight Decay).

    Example: p = (2, 2, -2) with the update (1, -1, -1) and factor 0.9 becomes (1.8, 2, -1.8).
    """
    if cautious:
        factor = torch.where(update.sign().mul_(p) >= 0, factor, 1.0)  # the product of two small numbers may become 0
    p.mul_(factor)


def _adamw(
    tensors: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    beta1: float,
    beta2: float,
    factor: float | Tensor,
    eps: float | Tensor,
    rate: float | Tensor,
    cautious: bool,
) -> None:
    """Update the moments m and v of every (p, g, m, v), then p = factor p + rate m / (sqrt(v) + eps), in place."""
    for p, g, m, v in tensors:
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        decay(p, m, factor, cautious)
        p.addcdiv_(m, v.sqrt().add_(eps).div_(rate))
