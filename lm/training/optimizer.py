"""Which optimizer updates which parameters, and gradient clipping."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lm.model.canon import CanonLayer
from lm.model.transformer import TransformerLM
from lm.training.adamw import AdamW
from lm.training.config import OptimConfig
from lm.training.distributed import all_reduce_sum, is_sharded, local
from lm.training.muon import Muon


def make_optimizer(model: TransformerLM, config: OptimConfig) -> AdamW | Muon:
    """Make the optimizer that `config` names. `TrainStep` sets the learning rate of all its groups at every step.

    Muon updates the matrices of the blocks. AdamW updates the embeddings and the head (Jordan et al. 2024), because
    each of their rows belongs to one token, and gradients differ in size between rare and frequent tokens.
    """
    betas = config.beta1, config.beta2
    groups = decay_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return AdamW(groups, betas=betas, eps=config.eps, cautious=config.cautious_weight_decay)
    in_blocks = {id(p) for p in matrices(model.layers)}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in in_blocks]} for group in groups]
    return Muon(
        matrices(model.layers),
        others,
        momentum=config.momentum,
        betas=betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        cautious=config.cautious_weight_decay,
        # A processor without instructions for bfloat16 takes ten times as long with it.
        dtype=torch.bfloat16 if model.lm_head.weight.is_cuda else torch.float32,
    )


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices, which decay, and all other parameters, which do not."""
    decayed = matrices(model)
    in_decayed = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in in_decayed], "weight_decay": 0.0},
    ]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that map vectors to vectors, each once; the others are gains and biases of single coordinates.

    The weights of Canon layers are such gains, one for each distance, although they have two dimensions.
    """
    canon = {id(p) for module in model.modules() if isinstance(module, CanonLayer) for p in module.parameters()}
    return [p for p in model.parameters() if p.ndim >= 2 and id(p) not in canon]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, eps: float = 1e-6) -> Tensor:
    """Scale all gradients in place so that their total L2 norm is at most `max_norm` (Pascanu et al. 2013).

    Returns the norm before clipping, a scalar tensor.

    Example: gradients 3 and 4 have norm 5; with `max_norm` 1, they become 0.6 and 0.8.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = is_sharded(gradients[0])
    gradients = [local(gradient) for gradient in gradients]
    # PyTorch's own clipping also uses the _foreach functions, which launch one kernel on a GPU for all gradients.
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    if sharded:
        norm = all_reduce_sum(norm.square()).sqrt()
    scale = (max_norm / (norm + eps)).clamp(max=1.0)
    # Reading `scale` would stall a GPU; on a CPU, it may save the second pass over all gradients.
    if scale.is_cuda or scale != 1:
        torch._foreach_mul_(gradients, scale)
    return norm
