"""One step of training: forward, loss, backward, clipping, update."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lm.model.transformer import TransformerLM
from lm.training.adamw import AdamW
from lm.training.batches import document_starts
from lm.training.config import Precision
from lm.training.distributed import all_reduce_sum, as_sharded, num_processes
from lm.training.loss import linear_cross_entropy
from lm.training.optimizer import clip_gradients


class Objective(nn.Module):
    """Inputs and targets (B, T) -> the model's mean loss, in nats per token.

    Args:
        precision: with bfloat16, autocast computes the matrix products in bfloat16; the weights stay in float32.
        document_separator: the token that begins a document, if tokens must not attend to other documents.
    """

    def __init__(self, model: TransformerLM, precision: Precision, document_separator: int | None) -> None:
        super().__init__()
        self.model, self.precision, self.document_separator = model, precision, document_separator

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        starts = None if self.document_separator is None else document_starts(inputs, self.document_separator)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self.model.hidden(inputs, document_starts=starts)  # (B, T, D)
            return linear_cross_entropy(hidden, self.model.lm_head.weight, targets)


class TrainStep:
    """One training step on a batch, in micro batches whose gradients are accumulated.

    With several processes, each passes its share of the batch; all shares have the same size. The gradients are
    averaged over the processes during the backward pass of the last micro batch, so that every process makes the same
    update.

    Args:
        model: on its device, and already sharded under FSDP.
        precision: see `Objective`.
        max_grad_norm: see `clip_gradients`.
        document_separator: see `Objective`.
        compile: whether to compile the model, the loss and the optimizer with torch.compile.
    """

    def __init__(
        self,
        model: TransformerLM,
        optimizer: AdamW,
        *,
        precision: Precision,
        max_grad_norm: float,
        document_separator: int | None = None,
        compile: bool = False,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.sharded = as_sharded(model)
        self.max_grad_norm = max_grad_norm
        self.loss: nn.Module = Objective(model, precision, document_separator)
        if compile:
            if self.sharded:
                # FSDP gathers and frees weights between the blocks, so each block is compiled on its own.
                for layer in model.layers:
                    layer.compile()
            else:
                self.loss.compile(dynamic=False)  # once for long windows and once for short ones
            optimizer.compile()
        if num_processes() > 1 and not self.sharded:
            self.loss = DistributedDataParallel(self.loss, gradient_as_bucket_view=True)

    def __call__(
        self, inputs: Tensor, targets: Tensor, learning_rate: float, micro_batch_size: int = 0
    ) -> tuple[float, float]:
        """Train on a batch of token ids, each (B, T), in micro batches of so many sequences; 0 means the whole batch.

        Returns the loss and the norm of the gradients before clipping. If one of them is not finite, the weights and
        the optimizer state do not change.
        """
        size = micro_batch_size or len(inputs)
        device = self.model.lm_head.weight.device
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=device)
        for start in range(0, len(inputs), size):
            micro_inputs, micro_targets = inputs[start : start + size], targets[start : start + size]
            is_last = start + size >= len(inputs)
            with self._average_gradients(is_last):
                loss = self.loss(micro_inputs.to(device), micro_targets.to(device))
                loss = loss * (len(micro_inputs) / len(inputs))
                loss.backward()
            mean += loss.detach()
        mean = all_reduce_sum(mean) / num_processes()
        norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        loss_value, norm_value = torch.stack((mean, norm)).tolist()  # one synchronization with the device, not two
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        return loss_value, norm_value

    @contextmanager
    def _average_gradients(self, enabled: bool) -> Iterator[None]:
        """Let a backward pass average the gradients over the processes if `enabled`, or else only accumulate them."""
        if self.sharded:
            self.sharded.set_requires_gradient_sync(enabled)
            yield
        elif isinstance(self.loss, DistributedDataParallel) and not enabled:
            with self.loss.no_sync():
                yield
        else:
            yield
