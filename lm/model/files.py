"""A trained model on disk: `model.safetensors`, and `config.json` with everything needed to build the model again."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lm.atomic import make_folder, write_json
from lm.errors import UserError
from lm.model.config import AttentionBackend, ModelConfig
from lm.model.transformer import TransformerLM
from lm.schema import validate


def save_model(folder: Path, model: TransformerLM, tokenizer_hash: str) -> None:
    """Write the weights, under the names of the parameters, and the configuration to `folder`.

    Raises:
        UserError: the folder or a file cannot be written.
    """
    make_folder(folder)
    # named_parameters lists a tied matrix once, and safetensors refuses two names for the same memory.
    weights = dict(model.named_parameters())
    write_tensors(folder / "model.safetensors", weights)
    config = {
        "model": dataclasses.asdict(model.config),
        "vocab_size": model.vocab_size,
        "tokenizer_hash": tokenizer_hash,
    }
    write_json(folder / "config.json", config)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, completely or not at all.

    Raises:
        UserError: the file cannot be written; an existing file stays as it was.
    """
    partial = path.with_name(path.name + ".part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as a SafetensorError
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error}); free some space or fix the path, and run again"
        ) from error


def load_model(folder: Path, tokenizer_hash: str, attention_backend: AttentionBackend = "sdpa") -> TransformerLM:
    """Build the model in `folder` on the CPU, in evaluation mode.

    Raises:
        UserError: a file is missing or damaged, or the model was trained with a different tokenizer.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        model = TransformerLM(validate(ModelConfig, config["model"]), config["vocab_size"], attention_backend)
        trained_with = config["tokenizer_hash"]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder}: no trained model; train one with: dvc repro train") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: the model's files are damaged ({error}); train it again with: dvc repro train"
        ) from error
    if trained_with != tokenizer_hash:
        raise UserError(
            f"{folder}: the model was trained with a different tokenizer; use the tokenizer of the same training, or "
            "run dvc repro to make both"
        )
    _copy_weights(model, weights, folder)
    return model.eval()


def weights_hash(folder: Path) -> str:
    """The SHA-256 of the weights' file in a model's folder, in hexadecimal digits."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_weights(model: TransformerLM, weights: dict[str, torch.Tensor], folder: Path) -> None:
    expected: dict[str, Any] = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(
            f"{folder / 'model.safetensors'}: does not match config.json: {wrong[0]} and {len(wrong) - 1} more"
        )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
