"""Import a Hugging Face folder in the layout of Llama or Qwen3 as a model and a tokenizer of this project.

A setting that our model cannot represent exactly is refused by name; nothing is approximated or guessed. What the
tokenizer cannot produce is dropped: the rows that pad a vocabulary to a round number. Weights in float16 and bfloat16
are converted to float32, which is exact. No code in the folder is run, and nothing is unpickled.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from lm.atomic import require_new_folder
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError, quote
from lm.export.llama import is_rotary, llama_name, to_interleaved
from lm.model.config import ModelConfig
from lm.model.files import build_model, open_tensors, read_tensor, save_model
from lm.model.transformer import TransformerLM
from lm.schema import check_range, read_json
from lm.tokenizer.encoding.hugging_face import read_tokenizer_json
from lm.tokenizer.tokenizer import Tokenizer

_ADVICE = "this model cannot be imported"
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class _Rope:
    """The settings of RoPE: `rope_parameters` in transformers 5, `rope_scaling` before."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None

    def __post_init__(self) -> None:
        if (kind := self.rope_type or self.type or "default") != "default":
            raise ValueError(f"rope_type: expected RoPE without scaling, 'default', got {quote(kind)}")
        if self.partial_rotary_factor not in (None, 1):
            raise ValueError(f"partial_rotary_factor: expected 1, got {self.partial_rotary_factor}")


@dataclass(frozen=True, kw_only=True)
class _Config(_Rope):
    """The keys of `config.json` that change what a model computes; other keys are ignored.

    A missing key has the value that transformers assumes. In earlier versions of transformers, settings of RoPE were
    at the top level.
    """

    model_type: Literal["llama", "qwen3"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    tie_word_embeddings: bool = False
    # Our model has only these values.
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    use_sliding_window: Literal[False] = False
    layer_types: list[Literal["full_attention"]] | None = None
    quantization_config: Literal[None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("vocab_size",), 1, 2**32)
        check_range(self, ("hidden_size", "num_attention_heads"), 1, 2**20)
        if self.rms_norm_eps != 1e-5:
            raise ValueError(f"rms_norm_eps: expected 1e-05, got {self.rms_norm_eps}")
        # Qwen3's default does not depend on the other sizes.
        default = 128 if self.model_type == "qwen3" else self.hidden_size // self.num_attention_heads
        d_head = default if self.head_dim is None else self.head_dim
        if d_head * self.num_attention_heads != self.hidden_size:
            raise ValueError(f"head_dim: expected hidden_size / num_attention_heads, got {d_head}")

    def model_config(self) -> ModelConfig:
        """Return the configuration of our model; raises ValueError if it cannot represent this one."""
        places = [place for place in (self.rope_scaling, self.rope_parameters, self) if place is not None]
        return ModelConfig(
            d_model=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads,
            d_ff=self.intermediate_size,
            context_length=self.max_position_embeddings,
            rope_theta=next((place.rope_theta for place in places if place.rope_theta is not None), 10000.0),
            qk_norm=self.model_type == "qwen3",
            tie_embeddings=self.tie_word_embeddings,
            norm="rmsnorm",
            norm_position="pre",
            position="rope",
            ffn="swiglu",
            canon=False,
        )


@dataclass(frozen=True, kw_only=True)
class _Index:
    """`model.safetensors.index.json`, which names the file of each tensor if there are several files."""

    weight_map: dict[str, str]


def import_hugging_face(folder: Path, model_folder: Path, tokenizer_folder: Path) -> int:
    """Read `config.json`, `*.safetensors` and `tokenizer.json`, and write them in the formats of this project.

    Args:
        folder: the folder to import. If the weights are in several files, `model.safetensors.index.json` names them.
        model_folder: the folder to write the model to; it must be empty, or not exist yet.
        tokenizer_folder: the folder to write the tokenizer to; it must be empty, or not exist yet.

    Returns:
        The number of rows of the vocabulary that were dropped because the tokenizer has no tokens for them.

    Raises:
        UserError: a file is missing or damaged, our model or tokenizer cannot represent this one, or one of the folders
            to write is in use; all of this is checked before anything is written. Also if a file cannot be written.
    """
    for out in (model_folder, tokenizer_folder):
        require_new_folder(out)
    path = folder / "config.json"
    values = read_json(path, _Config, _ADVICE, ignore_unknown_keys=True)
    try:
        config = values.model_config()
    except ValueError as error:
        raise UserError(f"{path}: {error}; {_ADVICE}") from error
    tokenizer = Tokenizer.from_hugging_face(folder / "tokenizer.json")
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise UserError(
            f"{folder}: cannot be imported, since its tokenizer has no special token {END_OF_TEXT!r}, which training "
            "and generation need"
        )
    if (before := read_tokenizer_json(folder / "tokenizer.json").before_text) not in ([], [END_OF_TEXT]):
        raise UserError(
            f"{folder}: cannot be imported, since its tokenizer puts {quote(before)} before each text, and ours "
            f"{END_OF_TEXT!r}"
        )
    if tokenizer.vocab_size > values.vocab_size:
        raise UserError(
            f"{folder}: cannot be imported, since the model has {values.vocab_size:,} tokens and its tokenizer "
            f"{tokenizer.vocab_size:,}"
        )
    model = _read_model(folder, config, values.vocab_size, tokenizer.vocab_size)
    tokenizer.save(tokenizer_folder)
    save_model(model_folder, model, tokenizer.hash)
    return values.vocab_size - tokenizer.vocab_size


def _read_model(folder: Path, config: ModelConfig, num_rows: int, vocab_size: int) -> TransformerLM:
    """Build a model of `vocab_size` tokens; in the files, the vocabulary has `num_rows` rows.

    All names, shapes and types are checked before any weights are read.
    """
    shapes = _shapes(config, num_rows)
    files = _find_weights(folder)
    found = {name for names in files.values() for name in names}
    ties = {_HEAD} & found if config.tie_embeddings else set()  # a second copy of the tied matrix
    if found - ties != shapes.keys():
        unexpected, missing = sorted(found - ties - shapes.keys()), sorted(shapes.keys() - found)
        first = f"unexpected {quote(unexpected[0])[1:-1]}" if unexpected else f"missing {missing[0]}"
        more = len(unexpected or missing) - 1
        raise UserError(f"{folder}: the weights do not match config.json: {first} and {more} more; {_ADVICE}")
    shapes |= dict.fromkeys(ties, shapes[_EMBEDDINGS])
    for path, names in files.items():
        with open_tensors(path, _ADVICE) as file:
            for name in names:
                shape = file.get_slice(name).get_shape()
                if shape != shapes[name]:
                    raise UserError(
                        f"{path}: {name}: expected the shape {shapes[name]}, got {shape}; the weights do not match "
                        "config.json"
                    )

    model = build_model(folder, config, vocab_size)
    parameters = {llama_name(name): weight for name, weight in model.named_parameters()}
    with torch.no_grad(), tqdm(total=len(found), desc="reading", unit="tensor", disable=None) as bar:
        for path, names in files.items():
            with open_tensors(path, _ADVICE) as file:
                for name in names:
                    rows = read_tensor(path, file, name)
                    if name in (_EMBEDDINGS, _HEAD):
                        rows = rows[:vocab_size]
                    if name in ties:
                        copy = rows.float()
                    else:
                        parameters[name].copy_(to_interleaved(rows, config.d_head) if is_rotary(name) else rows)
                    bar.update()
    if ties and not copy.equal(model.token_embeddings.weight):
        raise UserError(f"{folder}: {_HEAD} differs from {_EMBEDDINGS}, but tie_word_embeddings is true; {_ADVICE}")
    return model


def _shapes(config: ModelConfig, vocab_size: int) -> dict[str, list[int]]:
    """The shapes of all weights, by their names in Llama; those of the first block are those of every block."""
    with torch.device("meta"):  # which allocates nothing
        model = TransformerLM(dataclasses.replace(config, num_layers=1), vocab_size)
    shapes = {}
    for name, weight in model.named_parameters():
        for index in range(config.num_layers if name.startswith("layers.0.") else 1):
            shapes[llama_name(name.replace("layers.0.", f"layers.{index}."))] = list(weight.shape)
    return shapes


def _find_weights(folder: Path) -> dict[Path, list[str]]:
    """Return the names of the tensors in each file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        with open_tensors(single, "only safetensors files are read, so convert weights in another format") as file:
            return {single: list(file.keys())}
    files: dict[Path, list[str]] = {}
    for name, file_name in read_json(
        index, _Index, "download the model again", ignore_unknown_keys=True
    ).weight_map.items():
        # A path would let the index make us read any file on this machine.
        if Path(file_name).name != file_name or not file_name.endswith(".safetensors"):
            raise UserError(
                f"{index}: {quote(name)}: expected the name of a .safetensors file in the same folder, got "
                f"{quote(file_name)}; download the model again"
            )
        files.setdefault(folder / file_name, []).append(name)
    return files
