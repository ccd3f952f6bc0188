"""Cross-entropy: from logits, and from the input of the head without ever storing all logits.

Shapes: ... any leading dimensions, N tokens, D d_model, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from lm.model.fused.products import product_dtype
from lm.model.linear import matmul

# The maximum number of logits that `linear_cross_entropy` computes at once: few enough to stay in a CPU's cache, enough
# to keep a GPU busy.
CHUNK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27, "mps": 1 << 25}


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats, over all leading dimensions.

    Because log sum exp(x) = max + log sum exp(x - max), no exponential exceeds 1. Computed in float32.

    Args:
        logits: (..., V).
        targets: (...), token ids.

    Example: equal logits over V tokens give log V for every target.
    """
    logits = logits.float()
    target_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (...)
    return (logits.logsumexp(-1) - target_logits).mean()


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy(hidden @ weight.T, targets)`, computed in chunks of tokens.

    The gradient with respect to the logits is softmax - onehot, which is known as soon as the logits are. The forward
    pass therefore also computes each chunk's contribution to both gradients and then frees its logits. The logits and
    their softmax never exist for all tokens, and no product is computed twice.

    Args:
        hidden: (..., D), the input of the head.
        weight: (V, D), the weight of the head.
        targets: (...), token ids.

    The products are computed in the dtype that `product_dtype` returns: autocast's, or float32 where that is faster.
    Softmax, loss and the sum of the weight's gradients are in float32.
    """
    device = hidden.device.type
    dtype = product_dtype(hidden)
    with torch.autocast(device, enabled=False):  # every conversion is explicit from here on
        return _LinearCrossEntropy.apply(
            hidden.reshape(-1, hidden.shape[-1]), weight, targets.flatten(), dtype, torch.is_grad_enabled()
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, with_gradients: bool
    ) -> Tensor:  # (N, D), (V, D), (N)
        num_tokens = len(hidden)
        num_chunks = min(num_tokens, -(-num_tokens * len(weight) // CHUNK_LOGITS[hidden.device.type]))
        head = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        if with_gradients:
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros_like(weight)
        for x, x_targets, x_gradient in zip(
            hidden.tensor_split(num_chunks),
            targets.tensor_split(num_chunks),
            hidden_gradient.tensor_split(num_chunks) if with_gradients else [None] * num_chunks,
        ):
            x = x.to(dtype)
            logits = matmul(x, head).to(loss.dtype)  # (N / num_chunks, V)
            rows = x_targets.unsqueeze(-1)
            target_logits = logits.gather(-1, rows)
            maximum = logits.amax(-1, keepdim=True)
            exp = logits.sub_(maximum).exp_()
            total = exp.sum(-1, keepdim=True)
            loss += (maximum + total.log() - target_logits).sum()
            if x_gradient is not None:
                gradient = exp.div_(total * num_tokens)
                gradient.scatter_add_(-1, rows, torch.full_like(target_logits, -1 / num_tokens))
                gradient = gradient.to(dtype)
                del logits, exp  # the largest tensors of the loss
                x_gradient.copy_(matmul(gradient, head.T))
                weight_gradient += matmul(gradient.T, x.T)
                del gradient
        if with_gradients:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss / num_tokens

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient.mul_(gradient), weight_gradient.mul_(gradient), None, None, None
