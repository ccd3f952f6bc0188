"""Cross-entropy from logits."""

from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats, over all leading dimensions.

    log sum exp(x) = max + log sum exp(x - max) keeps every exponential at most 1; float32 whatever the logits are.

    Args:
        logits: (..., V).
        targets: (...), token ids.

    Example: equal logits over V tokens give log V, whatever the target.
    """
    logits = logits.float()
    target_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (...)
    return (logits.logsumexp(-1) - target_logits).mean()
