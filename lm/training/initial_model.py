"""The model whose weights a run starts from: `train.initial_model`."""

import dataclasses
from pathlib import Path

from lm.errors import UserError
from lm.model.files import load_model, read_config
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig


def check_initial_model(run: RunConfig) -> None:
    """Check the folder `train.initial_model`, unless that is none, without reading the weights.

    Raises:
        UserError: there is no such folder, it has no model, or the model's configuration differs from `run.model`.
    """
    if run.train.initial_model == "none":
        return
    folder = Path(run.train.initial_model)
    try:
        is_folder = folder.is_dir()
    except OSError:
        is_folder = True  # `read_config` says why it cannot be read
    if not is_folder:
        raise UserError(
            f"train.initial_model: expected none or the folder of a model, got {folder}, which is not a folder; do not "
            "use the output folder of stage train, because dvc deletes it before the stage runs"
        )
    try:
        config = read_config(folder).model
    except UserError as error:
        raise UserError(f"train.initial_model: {error}") from error
    expected, found = dataclasses.asdict(run.model), dataclasses.asdict(config)
    different = [f"model.{name}={found[name]}" for name in found if found[name] != expected[name]]
    if different:
        raise UserError(
            f"train.initial_model: the model in {folder} has a different configuration than params.yaml; set "
            f"{' '.join(different)}"
        )


def load_initial_model(run: RunConfig, tokenizer: Tokenizer) -> TransformerLM:
    """Load the model in the folder `train.initial_model`.

    Raises:
        UserError: `check_initial_model` refuses it, its weights are damaged or not finite, or it was trained with a
            different tokenizer.
    """
    check_initial_model(run)
    try:
        return load_model(Path(run.train.initial_model), tokenizer.hash)
    except UserError as error:
        raise UserError(f"train.initial_model: {error}") from error
