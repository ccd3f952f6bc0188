"""One step of training: forward, loss, backward, clipping, update."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lm.model.transformer import TransformerLM
from lm.training.adamw import AdamW
from lm.training.batches import document_starts
from lm.training.distributed import all_reduce_sum, num_processes
from lm.training.loss import linear_cross_entropy
from lm.training.optimizer import clip_gradients


class Objective(nn.Module):
    """Inputs and targets (B, T) -> the model's mean loss, in nats a token.

    Args:
        precision: bfloat16 is autocast: the products are, the weights stay float32.
        document_separator: the token that begins a document, where documents shall not see each other.
    """

    def __init__(
        self, model: TransformerLM, precision: Literal["float32", "bfloat16"], document_separator: int | None
    ) -> None:
        super().__init__()
        self.model, self.precision, self.document_separator = model, precision, document_separator

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        starts = None if self.document_separator is None else document_starts(inputs, self.document_separator)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self.model.hidden(inputs, document_starts=starts)  # (B, T, D)
            return linear_cross_entropy(hidden, self.model.lm_head.weight, targets)


class TrainStep:
    """One step for a batch, in micro batches whose gradients add up.

    Several processes each give their share of the batch, of one size; the gradients are averaged before the last micro
    batch is done, and the update is the same in all.

    Args:
        model: on its device, and sharded, if it shall be.
        precision: see `Objective`.
        max_grad_norm: see `clip_gradients`.
        document_separator: see `Objective`.
        micro_batch_size: sequences at once; 0 takes the whole batch.
        compile: whether torch.compile makes kernels of the model and the optimizer.
    """

    def __init__(
        self,
        model: TransformerLM,
        optimizer: AdamW,
        *,
        precision: Literal["float32", "bfloat16"],
        max_grad_norm: float,
        document_separator: int | None = None,
        micro_batch_size: int = 0,
        compile: bool = False,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.max_grad_norm, self.micro_batch_size = max_grad_norm, micro_batch_size
        self.loss = Objective(model, precision, document_separator)
        if compile:
            # FSDP gathers and frees weights between blocks: no graph can hold more than one.
            for module in model.layers if isinstance(model, FSDPModule) else (self.loss,):
                module.compile()
            optimizer.compile()
        if num_processes() > 1 and not isinstance(model, FSDPModule):
            self.loss = DistributedDataParallel(self.loss, gradient_as_bucket_view=True)

    def __call__(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> tuple[float, float]:
        """Learn from a batch, (B, T) token ids each; return the loss and the norm of the gradients before clipping.

        If one of the two is not finite, the weights stay as they are.
        """
        size = self.micro_batch_size or len(inputs)
        device = self.model.lm_head.weight.device
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=device)
        for start in range(0, len(inputs), size):
            micro_inputs, micro_targets = inputs[start : start + size], targets[start : start + size]
            with self._averaging(start + size >= len(inputs)):
                loss = self.loss(micro_inputs.to(device), micro_targets.to(device))
                loss = loss * (len(micro_inputs) / len(inputs))
                loss.backward()
            mean += loss.detach()
        mean = all_reduce_sum(mean) / num_processes()
        norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        loss_value, norm_value = torch.stack((mean, norm)).tolist()  # one wait for the device, not two
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        return loss_value, norm_value

    @contextmanager
    def _averaging(self, now: bool) -> Iterator[None]:
        """Whether the gradients of the backward pass inside are averaged over the processes, or only added up here."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(now)
            yield
        elif isinstance(self.loss, DistributedDataParallel) and not now:
            with self.loss.no_sync():
                yield
        else:
            yield
