"""One step of training: forward, loss, backward, clipping, update."""

import math
from typing import Literal

import torch
from torch import Tensor

from lm.model.transformer import TransformerLM
from lm.training.adamw import AdamW
from lm.training.batches import document_starts
from lm.training.loss import linear_cross_entropy
from lm.training.optimizer import clip_gradients


class Update:
    """One step for a batch, in micro batches whose gradients add up.

    Args:
        precision: bfloat16 is autocast: the products are, the weights stay float32.
        max_grad_norm: see `clip_gradients`.
        document_separator: the token that begins a document, where documents shall not see each other.
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
        self.precision, self.max_grad_norm = precision, max_grad_norm
        self.document_separator, self.micro_batch_size = document_separator, micro_batch_size
        self.loss = self._loss
        if compile:
            self.loss = torch.compile(self._loss)
            optimizer.compile()

    def __call__(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> tuple[float, float]:
        """Learn from a batch, (B, T) token ids each; return the loss and the norm of the gradients before clipping.

        If one of the two is not finite, the weights stay as they are.
        """
        size = self.micro_batch_size or len(inputs)
        device = self.model.lm_head.weight.device
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for micro_inputs, micro_targets in zip(inputs.split(size), targets.split(size)):
            loss = self.loss(micro_inputs.to(device), micro_targets.to(device)) * (len(micro_inputs) / len(inputs))
            loss.backward()
            total += loss.detach()
        norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        loss_value, norm_value = torch.stack((total, norm)).tolist()  # one wait for the device, not two
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        return loss_value, norm_value

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        starts = None if self.document_separator is None else document_starts(inputs, self.document_separator)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self.model.hidden(inputs, document_starts=starts)  # (B, T, D)
            return linear_cross_entropy(hidden, self.model.lm_head.weight, targets)
