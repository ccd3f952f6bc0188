"""The way back: a folder in Llama's or Qwen3's layout becomes a model folder and a tokenizer folder of ours.

What ours cannot represent exactly is refused by name; nothing is approximated, left out or guessed. Weights of float16
and bfloat16 become the same numbers in float32. No code of the folder is run, and nothing of it is unpickled.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from lm.errors import UserError
from lm.export.llama import NEEDED_SWITCHES, is_turned, llama_name, to_neighbours
from lm.export.tokenizer_json import read_tokenizer_json
from lm.model.config import ModelConfig
from lm.model.files import save_model
from lm.model.transformer import TransformerLM

_EXACT_IN_FLOAT32 = {"F32", "F16", "BF16"}  # safetensors' names

# Settings of `config.json` that change what the model computes: the value that ours has, and what transformers takes
# where the key is missing.
_FIXED: dict[str, tuple[object, object]] = {
    "hidden_act": ("silu", "silu"),
    "rms_norm_eps": (1e-5, 1e-6),
    "attention_bias": (False, False),
    "mlp_bias": (False, False),
    "use_sliding_window": (False, False),
    "quantization_config": (None, None),
}


def import_hugging_face(folder: Path, model_folder: Path, tokenizer_folder: Path) -> None:
    """Read `config.json`, `*.safetensors` and `tokenizer.json`; write what the stages train and train_bpe would.

    Args:
        folder: a model in the layout; many files are found by `model.safetensors.index.json`.
        model_folder: to write; made if it is not there.
        tokenizer_folder: to write, likewise.

    Raises:
        UserError: before anything is written, when a file is missing or damaged, the model or its tokenizer is another
            than ours could be, or one of the folders holds something already; or when they cannot be written.
    """
    for out, name in ((model_folder, "config.json"), (tokenizer_folder, "vocab.json")):
        if (out / name).exists():
            raise UserError(f"{out}: is in use already; name another folder for what is imported, or delete it")
    config, vocab_size = _read_config(folder / "config.json")
    tokenizer = read_tokenizer_json(folder / "tokenizer.json")
    _ = tokenizer.end_of_text_id  # without which neither training nor generation works
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder}: the model has {vocab_size:,} tokens and its tokenizer {tokenizer.vocab_size:,}; "
            "ours have the same number"
        )
    model = _read_model(folder, config, vocab_size)
    tokenizer.save(tokenizer_folder)
    save_model(model_folder, model, tokenizer.hash)


def _read_config(path: Path) -> tuple[ModelConfig, int]:
    """The model's shape, and the size of its vocabulary."""
    values = _read_json(path)
    family = values.get("model_type")
    if family not in ("llama", "qwen3"):
        raise UserError(f"{path}: model_type: expected 'llama' or 'qwen3', got {family!r}")
    for name, (ours, default) in _FIXED.items():
        if values.get(name, default) != ours:
            raise UserError(
                f"{path}: {name} is {values.get(name, default)} and ours is {ours}, so it cannot be imported"
            )
    d_model, num_heads = _whole(path, values, "hidden_size"), _whole(path, values, "num_attention_heads")
    kv_heads = "num_key_value_heads"
    d_head = values.get("head_dim") or (128 if family == "qwen3" else d_model // num_heads)
    if d_head * num_heads != d_model:
        raise UserError(
            f"{path}: head_dim is {d_head!r} and ours is hidden_size / num_attention_heads; it cannot be imported"
        )
    try:
        config = ModelConfig(
            d_model=d_model,
            num_layers=_whole(path, values, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_heads if values.get(kv_heads) is None else _whole(path, values, kv_heads),
            d_ff=_whole(path, values, "intermediate_size"),
            context_length=_whole(path, values, "max_position_embeddings"),
            rope_theta=_rope_theta(path, values),
            qk_norm=family == "qwen3",
            tie_embeddings=values.get("tie_word_embeddings") is True,
            **NEEDED_SWITCHES,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return config, _whole(path, values, "vocab_size")


def _rope_theta(path: Path, values: Mapping[str, Any]) -> float:
    """transformers 5 keeps it in `rope_parameters`, its forerunners beside a `rope_scaling`."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{path}: the positions are scaled by {rope} and ours are not, so it cannot be imported")
    for place in (values, rope):
        if place.get("partial_rotary_factor") not in (None, 1):
            raise UserError(f"{path}: partial_rotary_factor is not 1, as ours is, so it cannot be imported")
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    if type(theta) not in (int, float) or not 0 < theta < 1e30:  # no NaN, no infinity
        raise UserError(f"{path}: rope_theta: expected a positive number below 1e30, got {theta!r}")
    return float(theta)


def _whole(path: Path, values: Mapping[str, Any], name: str) -> int:
    if type(values.get(name)) is not int or values[name] < 1:
        raise UserError(f"{path}: {name}: expected a whole number from 1 on, got {values.get(name)!r}")
    return values[name]


def _read_model(folder: Path, config: ModelConfig, vocab_size: int) -> TransformerLM:
    """All names, shapes and types are checked before a byte of the weights is read."""
    with torch.device("meta"):
        shapes = {
            llama_name(name): list(weight.shape)
            for name, weight in TransformerLM(config, vocab_size).named_parameters()
        }
    files = _find_weights(folder)
    names = {name for names in files.values() for name in names}
    if names != shapes.keys():
        surplus, missing = sorted(names - shapes.keys()), sorted(shapes.keys() - names)
        first = f"{surplus[0]} has no place" if surplus else f"{missing[0]} is missing"
        raise UserError(f"{folder}: the weights do not fit config.json: {first}, one of {len(surplus or missing)}")
    for path, names in files.items():
        with _opened(path) as file:
            for name in names:
                tensor = file.get_slice(name)
                if tensor.get_shape() != shapes[name]:
                    raise UserError(f"{path}: {name}: expected the shape {shapes[name]}, got {tensor.get_shape()}")
                if tensor.get_dtype() not in _EXACT_IN_FLOAT32:
                    raise UserError(
                        f"{path}: {name} is {tensor.get_dtype()}, which cannot be imported; convert it to F32"
                    )

    model = TransformerLM(config, vocab_size)
    parameters = {llama_name(name): weight for name, weight in model.named_parameters()}
    with torch.no_grad(), tqdm(total=len(parameters), desc="reading", unit="tensor") as bar:
        for path, names in files.items():
            with _opened(path) as file:
                for name in names:
                    rows: Tensor = file.get_tensor(name)
                    parameters[name].copy_(to_neighbours(rows, config.d_head) if is_turned(name) else rows)
                    bar.update()
    return model


def _find_weights(folder: Path) -> dict[Path, list[str]]:
    """The names of the tensors in each file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        with _opened(single) as file:
            return {single: list(file.keys())}
    files: dict[Path, list[str]] = {}
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index}: expected the file of each tensor under 'weight_map', got {weight_map!r}")
    for name, file_name in weight_map.items():
        # Otherwise an index could make us read any file of this machine.
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(".safetensors")
        ):
            raise UserError(f"{index}: {name}: expected the name of a .safetensors file beside it, got {file_name!r}")
        files.setdefault(folder / file_name, []).append(name)
    return files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not found; only safetensors are read, so convert weights of another format"
        ) from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); get it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the folder of a model") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); get it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}; get it again")
    return values
