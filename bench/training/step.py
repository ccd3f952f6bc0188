"""One training step of a system, as its users would write it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.common.models import Lm
from lm.training.config import OptimConfig
from lm.training.optimizer import decay_groups, make_optimizer
from lm.training.train_step import TrainStep

Step = Callable[[Tensor, Tensor, float], float | Tensor]


def make_step(
    system: Any,
    optim: OptimConfig,
    precision: str,
    device: torch.device,
    *,
    compiled: bool,
    document_separator: int | None = None,
) -> Step:
    """Return the step of a system: a function of inputs, targets and learning rate that returns the loss before it.

    Ours is `lm.training.train_step`. The others have what a user of PyTorch writes: autocast, PyTorch's gradient
    clipping and fused AdamW. Their step reads no value from the device, so it does not wait for a GPU.
    `document_separator` is for ours only; see `lm.training.train_step`.
    """
    model = system.model.to(device)
    if isinstance(system, Lm):
        train_step = TrainStep(
            model,
            make_optimizer(model, optim),
            precision="bfloat16" if precision == "bfloat16" else "float32",
            max_grad_norm=optim.max_grad_norm,
            document_separator=document_separator,
            compile=compiled,
        )
        return lambda inputs, targets, learning_rate: train_step(inputs, targets, learning_rate)[0]

    optimizer = torch.optim.AdamW(
        decay_groups(model, optim.weight_decay), betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True
    )
    if compiled:
        system.model = torch.compile(model)

    def step(inputs: Tensor, targets: Tensor, learning_rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = system.loss(inputs.to(device), targets.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
