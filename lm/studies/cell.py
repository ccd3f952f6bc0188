"""The cells of an ablation, of a scaling law and of a study: training runs that differ in as little as possible."""

import dataclasses
import math
from pathlib import Path

from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.schema import read_json
from lm.studies.config import CommonConfig, SwitchesConfig, parse_size
from lm.training.config import OptimConfig, RunConfig, TrainConfig

LearningRates = dict[str, dict[str, dict[str, float]]]
"""The best learning rates of a sweep by variant, size and budget: {"baseline": {"64x2": {"400000": 0.005}}}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What distinguishes a run from the others of its grid.

    Attributes:
        variant: the variant's name.
        size: width and number of layers, such as "64x2".
        budget: the number of training tokens.
        learning_rate: the highest one, before it is multiplied by the variant's `learning_rate_scale`.
        seed: of the weights and of the order of the batches.
    """

    variant: str
    size: str
    budget: int
    learning_rate: float
    seed: int


def configure(common: CommonConfig, switches: SwitchesConfig, cell: Cell, num_evaluations: int) -> RunConfig:
    """The configuration of a cell.

    The hidden layer of SwiGLU has 8/3 of the model's width, rounded up to a multiple of 8 (Touvron et al. 2023).

    Raises:
        UserError: the variant does not fit the size, the budget or the other settings, or the seed is out of range.
    """
    d_model, num_layers = parse_size(cell.size)
    num_heads = max(1, d_model // switches.d_head)
    tokens = switches.batch_size * common.context_length  # per step
    max_steps = round(cell.budget / tokens)
    decay_steps = round(switches.decay_fraction * max_steps) if switches.schedule == "wsd" else 0
    rate = cell.learning_rate * switches.learning_rate_scale
    least = max(1, common.warmup_steps + decay_steps)
    try:
        if max_steps < least:
            raise ValueError(
                f"budgets: expected at least {least * tokens:,} tokens, {least} steps of {tokens:,} tokens for warmup "
                f"and decay, got {cell.budget:,}"
            )
        model = ModelConfig(
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            d_ff=8 * -(-d_model // 3),
            context_length=common.context_length,
            rope_theta=common.rope_theta,
            norm=switches.norm,
            norm_position=switches.norm_position,
            position=switches.position,
            qk_norm=switches.qk_norm,
            ffn=switches.ffn,
            canon=switches.canon,
            tie_embeddings=switches.tie_embeddings,
        )
        optim = OptimConfig(
            optimizer=switches.optimizer,
            max_learning_rate=rate,
            min_learning_rate=rate * switches.final_learning_rate,
            schedule=switches.schedule,
            warmup_steps=common.warmup_steps,
            decay_steps=decay_steps,
            decay_shape=switches.decay_shape,
            weight_decay=common.weight_decay,
            cautious_weight_decay=switches.cautious_weight_decay,
            momentum=common.momentum,
            beta1=common.beta1,
            beta2=common.beta2,
            eps=common.eps,
            max_grad_norm=common.max_grad_norm,
        )
        train = TrainConfig(
            max_steps=max_steps,
            batch_size=switches.batch_size,
            windows=switches.windows,
            short_fraction=switches.short_fraction,
            short_context_length=common.short_context_length,
            eval_every=-(-max_steps // num_evaluations),
            seed=cell.seed,
            precision=common.precision,
            document_mask=switches.document_mask,
            max_skipped_steps=0,
            initial_model="none",
            prompt=common.prompt,
        )
    except ValueError as error:
        raise UserError(f"the cell {cell.variant}, {cell.size}, {cell.budget}, {cell.seed}: {error}") from error
    return RunConfig(model=model, optim=optim, train=train)


def read_learning_rate(path: Path, variant: str, size: str, budget: int) -> float:
    """The best rate of a variant and size, from the budget of the sweep that is closest to `budget` as a ratio.

    Raises:
        UserError: the file is missing or damaged, or has no rate for this variant and size.
    """
    advice = "run the sweep first: dvc repro learning_rates"
    by_budget = read_json(path, LearningRates, advice).get(variant, {}).get(size, {})
    try:
        budgets = {int(name): rate for name, rate in by_budget.items()}
        closest = min(budgets, key=lambda tokens: abs(math.log(tokens / budget)))
    except ValueError as error:
        raise UserError(f"{path}: has no learning rate for {variant}, {size}; {advice}") from error
    return budgets[closest]
