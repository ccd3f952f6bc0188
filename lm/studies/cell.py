"""The cells of an ablation, of a scaling law and of a study: training runs that differ in as little as possible."""

import dataclasses
from pathlib import Path

from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.schema import read_json
from lm.studies.config import CommonConfig, SwitchesConfig, parse_point
from lm.training.config import OptimConfig, RunConfig, TrainConfig

LearningRates = dict[str, dict[str, float]]
"""The learning rates of a study by variant and point, from its sweep: {"muon": {"64x2-400000": 0.01}}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What distinguishes a run from the others of its grid.

    Attributes:
        variant: the variant's name.
        point: the size and the number of training tokens, such as "64x2-400000".
        learning_rate: the highest one, before it is multiplied by the variant's `learning_rate_scale`.
        seed: of the weights and of the order of the batches.
    """

    variant: str
    point: str
    learning_rate: float
    seed: int


def configure(common: CommonConfig, switches: SwitchesConfig, cell: Cell, num_evaluations: int) -> RunConfig:
    """The configuration of a cell.

    The hidden layer of SwiGLU has 8/3 of the model's width, rounded up to a multiple of 8 (Touvron et al. 2023).

    Raises:
        UserError: the variant does not fit the size, the budget or the other settings, or the seed is out of range.
    """
    d_model, num_layers, budget = parse_point(cell.point)
    num_heads = max(1, d_model // switches.d_head)
    tokens = switches.batch_size * common.context_length  # per step
    max_steps = round(budget / tokens)
    decay_steps = round(switches.decay_fraction * max_steps) if switches.schedule == "wsd" else 0
    rate = cell.learning_rate * switches.learning_rate_scale
    least = max(1, common.warmup_steps + decay_steps)
    try:
        if max_steps < least:
            raise ValueError(
                f"expected at least {least * tokens:,} tokens, {least} steps of {tokens:,} tokens for warmup and decay"
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
        raise UserError(f"the cell {cell.variant}-{cell.point}-{cell.seed}: {error}") from error
    return RunConfig(model=model, optim=optim, train=train)


def read_learning_rate(path: Path, variant: str, point: str) -> float:
    """The learning rate of a variant at a point, from the file that the stage learning_rates wrote.

    Raises:
        UserError: the file is missing or damaged, or has no rate for this variant and point.
    """
    advice = "run the sweep first: dvc repro learning_rates"
    try:
        return read_json(path, LearningRates, advice)[variant][point]
    except KeyError as error:
        raise UserError(f"{path}: has no learning rate for {variant}, {point}; {advice}") from error
