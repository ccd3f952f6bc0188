"""The model whose weights a run starts from: `train.initial_model`."""

import dataclasses
from pathlib import Path

from lm.errors import UserError
from lm.model.files import load_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig


def check_initial_model(run: RunConfig, tokenizer: Tokenizer) -> None:
    """Raise the error that `load_initial_model` would raise, before any work is done."""
    if run.train.initial_model != "none":
        load_initial_model(run, tokenizer)


def load_initial_model(run: RunConfig, tokenizer: Tokenizer) -> TransformerLM:
    """Load the model in the folder `train.initial_model`.

    Raises:
        UserError: there is no such folder, its files are damaged, its weights are not finite, it was trained with
            a different tokenizer, or its configuration differs from `run.model`.
    """
    folder = Path(run.train.initial_model)
    if not folder.is_dir():
        raise UserError(
            f"train.initial_model: expected none or the folder of a model, got {folder}, which is not a folder; do not "
            "use the output folder of stage train, because dvc deletes it before the stage runs"
        )
    try:
        model = load_model(folder, tokenizer.hash)
    except UserError as error:
        raise UserError(f"train.initial_model: {error}") from error
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise UserError(f"train.initial_model: {folder} has weights that are not finite, because its training diverged")
    expected, found = dataclasses.asdict(run.model), dataclasses.asdict(model.config)
    different = [f"model.{name}={found[name]}" for name in found if found[name] != expected[name]]
    if different:
        raise UserError(
            f"train.initial_model: the model in {folder} has a different configuration than params.yaml; set "
            f"{' '.join(different)}"
        )
    return model
