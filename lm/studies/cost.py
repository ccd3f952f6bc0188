"""What a training run costs, and how large its model is."""

from lm.model.cost import parameters, training_flops_per_token
from lm.training.config import RunConfig


def cost(run: RunConfig, vocab_size: int) -> dict[str, float]:
    """The size and the cost of a run, for its metrics.

    There are three counts of parameters, because the exponents of a scaling law depend on it (Pearce & Song 2024):
    all (Hoffmann et al. 2022), those that take part in matrix products, and those of the blocks without embeddings and
    head (Kaplan et al. 2020). `flops` are those of the whole training.
    """
    counts = parameters(run.model, vocab_size)
    outside = "token_embeddings", "position_embeddings", "lm_head"
    blocks = sum(count for name, count in counts.items() if name not in outside)
    tokens, short_tokens = run.num_tokens(run.train.max_steps), run.num_tokens(run.short_steps)
    short_flops = training_flops_per_token(run.model, vocab_size, run.short_context_length)
    long_flops = training_flops_per_token(run.model, vocab_size)
    return {
        "num_parameters": sum(counts.values()),
        "num_parameters_without_embeddings": blocks + run.model.d_model * vocab_size,
        "num_parameters_of_blocks": blocks,
        "learning_rate": run.optim.max_learning_rate,
        "flops": short_tokens * short_flops + (tokens - short_tokens) * long_flops,
    }
