"""A trained model on disk: `model.safetensors`, and `config.json` with everything needed to build the model again."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lm.atomic import make_folder, translate_write_errors, write_json
from lm.errors import UserError
from lm.memory import available_memory
from lm.model.config import AttentionBackend, ModelConfig
from lm.model.cost import parameters
from lm.model.transformer import TransformerLM
from lm.schema import check_range, open_file, read_json, validate

EXACT_IN_FLOAT32 = ("F32", "F16", "BF16")  # safetensors' names of the types whose values float32 represents exactly

_ADVICE = "this folder has no trained model; train one with: dvc repro train"


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """The content of a model's `config.json`."""

    model: ModelConfig
    vocab_size: int
    tokenizer_hash: str

    def __post_init__(self) -> None:
        check_range(self, ("vocab_size",), 1, 2**32)


def save_model(folder: Path, model: TransformerLM, tokenizer_hash: str) -> None:
    """Write the weights, under the names of the parameters, and the configuration to `folder`.

    Raises:
        UserError: the folder or a file cannot be written.
    """
    make_folder(folder)
    # named_parameters lists a tied matrix once, and safetensors refuses two names for the same memory.
    weights = dict(model.named_parameters())
    write_tensors(folder / "model.safetensors", weights)
    saved = SavedConfig(model=model.config, vocab_size=model.vocab_size, tokenizer_hash=tokenizer_hash)
    write_json(folder / "config.json", dataclasses.asdict(saved))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, completely or not at all.

    Raises:
        UserError: the file cannot be written; an existing file stays as it was.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with translate_write_errors(path):
            partial.touch()
            mode = partial.stat().st_mode  # as the umask says; safetensors makes files that only their owner can read
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
            partial.chmod(mode)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except SafetensorError as error:  # a full disk, for example
        raise UserError(
            f"{path}: cannot be written ({error}); free some space or fix the path, and run again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_model(folder: Path, tokenizer_hash: str, attention_backend: AttentionBackend = "auto") -> TransformerLM:
    """Build the model in `folder` on the CPU, in evaluation mode.

    Raises:
        UserError: a file is missing, cannot be read or is damaged, the weights do not match the configuration or are
            not finite, there is not enough memory, or the model was trained with a different tokenizer.
    """
    saved = read_config(folder)
    if saved.tokenizer_hash != tokenizer_hash:
        raise UserError(
            f"{folder}: the model was trained with a different tokenizer; use the tokenizer of the same training, or "
            "run dvc repro to make both"
        )
    path = folder / "model.safetensors"
    with open_tensors(path, _ADVICE) as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        # Compared before the model is built, because a wrong configuration may describe one that fills the memory.
        expected = sum(parameters(saved.model, saved.vocab_size).values())
        found = sum(map(math.prod, shapes.values()))
        if found != expected:
            raise UserError(
                f"{path}: does not match config.json, which describes a model of {expected:,} parameters, got {found:,}"
            )
        model = build_model(folder, saved.model, saved.vocab_size, attention_backend)
        _check_shapes(path, {name: tuple(weight.shape) for name, weight in model.named_parameters()}, shapes)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(read_tensor(path, file, name))
    return model.eval()


def build_model(
    folder: Path, config: ModelConfig, vocab_size: int, attention_backend: AttentionBackend = "auto"
) -> TransformerLM:
    """Build the model that is in `folder`, with random weights.

    Raises:
        UserError: there is not enough memory.
    """
    count = sum(parameters(config, vocab_size).values())
    tables = 4 * config.d_head * config.context_length if config.position == "rope" else 0  # two, and temporary ones
    needed, available = 4 * (count + tables), available_memory(torch.device("cpu"), 1)["CPU"]
    problem = (
        f"{folder}: the model, of {count:,} parameters and a context of {config.context_length:,} tokens, needs "
        f"{needed:,} bytes of memory"
    )
    if needed > available:
        raise UserError(f"{problem}, but {available:,} are free")
    try:
        return TransformerLM(config, vocab_size, attention_backend)
    except (MemoryError, RuntimeError) as error:  # a limit of the process, such as `ulimit -v`
        raise UserError(f"{problem}, which cannot be allocated") from error


def read_config(folder: Path) -> SavedConfig:
    """Read the configuration of the model in `folder`.

    Raises:
        UserError: the file is missing, cannot be read, or is not the configuration of a model of this project.
    """
    path = folder / "config.json"
    values = read_json(path, dict[str, Any], _ADVICE)
    if "model_type" in values:
        raise UserError(f"{path}: a model in the format of transformers; convert it with: lm import hf {folder}")
    try:
        return validate(SavedConfig, values)
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore the file, or make it again with: dvc repro train") from error


def weights_hash(folder: Path) -> str:
    """The SHA-256 of the weights' file in a model's folder, in hexadecimal digits."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_tensors(path: Path, advice: str) -> Iterator[Any]:
    """Open a safetensors file for reading: `file.keys()`, and `file.get_slice(name)` with its shape and its type.

    Args:
        advice: what to do if the file is missing.

    Raises:
        UserError: the file is missing, cannot be read, or is damaged.
    """
    try:
        with open_file(path, advice), safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); make or download it again") from error


def read_tensor(path: Path, file: Any, name: str) -> Tensor:
    """Read a tensor from a file that `open_tensors` opened.

    Raises:
        UserError: float32 cannot represent its type exactly, or its values are not finite.
    """
    if (kind := file.get_slice(name).get_dtype()) not in EXACT_IN_FLOAT32:
        raise UserError(f"{path}: {name}: expected {', '.join(EXACT_IN_FLOAT32)}, got {kind}; convert it to F32")
    tensor: Tensor = file.get_tensor(name)
    if not torch.stack(tensor.aminmax()).isfinite().all():  # the smallest and the largest value are NaN if any is
        raise UserError(
            f"{path}: {name} has weights that are not finite; the training diverged, or the file is damaged"
        )
    return tensor


def _check_shapes(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(f"{path}: does not match config.json: {wrong[0]} and {len(wrong) - 1} more")
