"""The cells of an ablation, of a scaling law and of a study: training runs that differ in as little as possible."""

import dataclasses
import itertools

from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.studies.config import Grid, StudyConfig, parse_point
from lm.training.config import OptimConfig, RunConfig, TrainConfig

LearningRates = dict[str, dict[str, float]]
"""The learning rates of a study by variant and point, from its sweep: {"muon": {"64x2-400000": 0.01}}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What distinguishes a run from the others of its grid.

    Attributes:
        variant: the variant's name.
        point: the size and the number of training tokens, such as "64x2-400000".
        seed: of the weights and of the order of the batches.
    """

    variant: str
    point: str
    seed: int


def grid_cells(grid: Grid) -> dict[str, Cell]:
    """The cells of a grid by name, in the order of its table."""
    return {
        f"{variant}-{point}-{seed}": Cell(variant=variant, point=point, seed=seed)
        for variant, point, seed in itertools.product(grid.run, grid.axes.points, grid.axes.seeds)
    }


def sweep_cells(study: StudyConfig) -> dict[str, tuple[Cell, float]]:
    """The cells of a study's sweep, which have its first seed, with their learning rates, by name."""
    return {
        f"{variant}-{point}-{rate}": (Cell(variant=variant, point=point, seed=study.seeds[0]), rate)
        for variant, point, rate in itertools.product(study.run, study.sweep.points, study.sweep.learning_rates)
    }


def configure(grid: Grid, cell: Cell, learning_rate: float) -> RunConfig:
    """The configuration of a cell of a grid.

    The hidden layer of SwiGLU has 8/3 of the model's width, rounded up to a multiple of 8 (Touvron et al. 2023).

    Args:
        learning_rate: the highest one, before it is multiplied by the variant's `learning_rate_scale`.

    Raises:
        UserError: the variant does not fit the point or the other settings, or the seed is out of range.
    """
    common, switches = grid.common, grid.variants[cell.variant]
    d_model, num_layers, num_tokens = parse_point(cell.point)
    num_heads = max(1, d_model // switches.d_head)
    per_step = switches.batch_size * common.context_length
    max_steps = num_tokens // per_step
    decay_steps = round(switches.decay_fraction * max_steps) if switches.schedule == "wsd" else 0
    rate = learning_rate * switches.learning_rate_scale
    least = max(1, common.warmup_steps + decay_steps)
    try:
        if max_steps < least or num_tokens % per_step:
            raise ValueError(
                f"expected a multiple of {per_step:,} training tokens (one step), at least {least * per_step:,} for "
                f"warmup and decay, got {num_tokens:,}"
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
            eval_every=-(-max_steps // grid.axes.num_evaluations),
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
