"""Import a Hugging Face folder in the layout of Llama or Qwen3 as a model and a tokenizer of this project.

A setting that our model cannot represent exactly is refused by name; nothing is approximated, dropped or guessed.
Weights in float16 and bfloat16 are converted to float32, which is exact. No code in the folder is run, and nothing is
unpickled.
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

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.export.llama import is_rotary, llama_name, to_interleaved
from lm.export.tokenizer_json import read_tokenizer_json
from lm.model.config import ModelConfig
from lm.model.files import save_model
from lm.model.transformer import TransformerLM

_EXACT_IN_FLOAT32 = ("F32", "F16", "BF16")  # safetensors' names for the types

# Settings of `config.json` that change what the model computes: the value that our model has, and the value that
# transformers assumes if the key is missing.
_FIXED: dict[str, tuple[object, object]] = {
    "hidden_act": ("silu", "silu"),
    "rms_norm_eps": (1e-5, 1e-6),
    "attention_bias": (False, False),
    "mlp_bias": (False, False),
    "use_sliding_window": (False, False),
    "quantization_config": (None, None),
}


def import_hugging_face(folder: Path, model_folder: Path, tokenizer_folder: Path) -> None:
    """Read `config.json`, `*.safetensors` and `tokenizer.json`, and write them in the formats of this project.

    Args:
        folder: the folder to import. If the weights are in several files, `model.safetensors.index.json` names them.
        model_folder: the folder to write the model to, created if it does not exist.
        tokenizer_folder: the folder to write the tokenizer to, created if it does not exist.

    Raises:
        UserError: a file is missing or damaged, our model or tokenizer cannot represent this one, or one of the folders
            to write is in use; all of this is checked before anything is written. Also if a file cannot be written.
    """
    for out, name in ((model_folder, "config.json"), (tokenizer_folder, "vocab.json")):
        if (out / name).exists():
            raise UserError(f"{out}: already in use; choose another folder, or delete it")
    config, vocab_size = _read_config(folder / "config.json")
    tokenizer = read_tokenizer_json(folder / "tokenizer.json")
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise UserError(
            f"{folder}: cannot be imported, since its tokenizer has no special token {END_OF_TEXT!r}, which training "
            "and generation need"
        )
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder}: cannot be imported, since the model has {vocab_size:,} tokens and its tokenizer "
            f"{tokenizer.vocab_size:,}"
        )
    model = _read_model(folder, config, vocab_size)
    tokenizer.save(tokenizer_folder)
    save_model(model_folder, model, tokenizer.hash)


def _read_config(path: Path) -> tuple[ModelConfig, int]:
    """Return the model's configuration and the size of its vocabulary."""
    values = _read_json(path)
    family = values.get("model_type")
    if family not in ("llama", "qwen3"):
        raise UserError(
            f"{path}: model_type: expected 'llama' or 'qwen3', got {family!r}; this model cannot be imported"
        )
    for name, (ours, default) in _FIXED.items():
        if values.get(name, default) != ours:
            raise UserError(
                f"{path}: {name}: expected {ours}, got {values.get(name, default)}; this model cannot be imported"
            )
    layer_types = values.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise UserError(
            f"{path}: layer_types: expected only 'full_attention', got {layer_types}; this model cannot be imported"
        )
    d_model, num_heads = _positive_int(path, values, "hidden_size"), _positive_int(path, values, "num_attention_heads")
    kv_heads = "num_key_value_heads"
    # As in transformers, where Qwen3's default does not depend on the other sizes.
    d_head = values.get("head_dim") or (128 if family == "qwen3" else d_model // num_heads)
    if d_head * num_heads != d_model:
        raise UserError(
            f"{path}: head_dim: expected hidden_size / num_attention_heads, got {d_head!r}; this model cannot be "
            "imported"
        )
    try:
        config = ModelConfig(
            d_model=d_model,
            num_layers=_positive_int(path, values, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_heads if values.get(kv_heads) is None else _positive_int(path, values, kv_heads),
            d_ff=_positive_int(path, values, "intermediate_size"),
            context_length=_positive_int(path, values, "max_position_embeddings"),
            rope_theta=_rope_theta(path, values),
            qk_norm=family == "qwen3",
            tie_embeddings=values.get("tie_word_embeddings") is True,
            norm="rmsnorm",
            norm_position="pre",
            position="rope",
            ffn="swiglu",
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return config, _positive_int(path, values, "vocab_size")


def _rope_theta(path: Path, values: Mapping[str, Any]) -> float:
    """Read the base of RoPE: transformers 5 writes it to `rope_parameters`, earlier versions to the top level."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{path}: expected RoPE without scaling, got {rope}; this model cannot be imported")
    for place in (values, rope):
        factor = place.get("partial_rotary_factor")
        if factor not in (None, 1):
            raise UserError(f"{path}: partial_rotary_factor: expected 1, got {factor}; this model cannot be imported")
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    if type(theta) not in (int, float) or not 0 < theta < 1e30:  # no NaN, no infinity
        raise UserError(f"{path}: rope_theta: expected a positive number below 1e30, got {theta!r}; correct the file")
    return float(theta)


def _positive_int(path: Path, values: Mapping[str, Any], name: str) -> int:
    if type(values.get(name)) is not int or values[name] < 1:
        raise UserError(f"{path}: {name}: expected a positive integer, got {values.get(name)!r}; correct the file")
    return values[name]


def _read_model(folder: Path, config: ModelConfig, vocab_size: int) -> TransformerLM:
    """Build the model; all names, shapes and types are checked before any weights are read."""
    with torch.device("meta"):
        shapes = {
            llama_name(name): list(weight.shape)
            for name, weight in TransformerLM(config, vocab_size).named_parameters()
        }
    files = _find_weights(folder)
    found = {name for names in files.values() for name in names}
    if found != shapes.keys():
        unexpected, missing = sorted(found - shapes.keys()), sorted(shapes.keys() - found)
        first = f"unexpected {unexpected[0]}" if unexpected else f"missing {missing[0]}"
        more = len(unexpected or missing) - 1
        raise UserError(
            f"{folder}: the weights do not match config.json: {first} and {more} more; this model cannot be imported"
        )
    for path, names in files.items():
        with _open(path) as file:
            for name in names:
                tensor = file.get_slice(name)
                if tensor.get_shape() != shapes[name]:
                    raise UserError(
                        f"{path}: {name}: expected the shape {shapes[name]}, got {tensor.get_shape()}; the weights do "
                        "not match config.json"
                    )
                if tensor.get_dtype() not in _EXACT_IN_FLOAT32:
                    raise UserError(
                        f"{path}: {name}: expected {', '.join(_EXACT_IN_FLOAT32)}, got {tensor.get_dtype()}; "
                        "convert it to F32"
                    )

    model = TransformerLM(config, vocab_size)
    parameters = {llama_name(name): weight for name, weight in model.named_parameters()}
    with torch.no_grad(), tqdm(total=len(parameters), desc="reading", unit="tensor", disable=None) as bar:
        for path, names in files.items():
            with _open(path) as file:
                for name in names:
                    rows: Tensor = file.get_tensor(name)
                    parameters[name].copy_(to_interleaved(rows, config.d_head) if is_rotary(name) else rows)
                    bar.update()
    return model


def _find_weights(folder: Path) -> dict[Path, list[str]]:
    """Return the names of the tensors in each file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        with _open(single) as file:
            return {single: list(file.keys())}
    files: dict[Path, list[str]] = {}
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(
            f"{index}: weight_map: expected an object with the file of each tensor, got {weight_map!r}; download the "
            "model again"
        )
    for name, file_name in weight_map.items():
        # A path would let the index make us read any file on this machine.
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(".safetensors")
        ):
            raise UserError(
                f"{index}: {name}: expected the name of a .safetensors file in the same folder, got {file_name!r}; "
                "download the model again"
            )
        files.setdefault(folder / file_name, []).append(name)
    return files


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not found; only safetensors files are read, so convert weights in another format"
        ) from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); download the model again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); choose the folder of a model") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); download the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}; download the model again")
    return values
