"""Export a model to a GGUF file, the format of llama.cpp.

Matrices are stored as f32, f16, bf16, or q8_0 (eight bits per weight); the vectors of the norms stay in float32.
llama.cpp rotates interleaved pairs in a Llama model, as ours does, and half-split pairs in a Qwen3 model (see
`lm.export.llama`).
"""

import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from lm.atomic import check_folder, make_folder, translate_write_errors
from lm.errors import UserError, quote
from lm.export.llama import check_layout, llama_weights, norm_eps
from lm.export.tokenizer_json import merge_texts, pattern_name, token_texts
from lm.generation import q8_0
from lm.model.config import ModelConfig
from lm.model.files import load_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

WeightType = Literal["f32", "f16", "bf16", "q8_0"]

# What llama.cpp calls the patterns.
_PRE_TOKENIZERS = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2"}

_LARGEST = {"f32": math.inf, "f16": 65504.0, "bf16": math.inf, "q8_0": q8_0.LARGEST}


def export_gguf(model_folder: Path, tokenizer_folder: Path, out: Path, weight_type: WeightType) -> None:
    """Write a trained model and its tokenizer to the file `out`, atomically.

    Args:
        model_folder: the output of the stage train.
        tokenizer_folder: the tokenizer that the model was trained with.
        out: the file to write. Its folder is created if it does not exist.
        weight_type: the type of the matrices.

    Raises:
        UserError: the format cannot represent the model, its tokenizer or this type of weights, a file cannot be read,
            `out` exists, gguf is not installed, or `out` cannot be written.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed; run: pip install gguf")
    if os.path.lexists(out):
        raise UserError(f"{out}: already exists; choose another file, or delete it")
    if os.path.lexists(_part(out)):
        raise UserError(f"{_part(out)}: already exists; delete it, if an interrupted export has left it")
    check_folder(out.parent)
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = load_model(model_folder, tokenizer.hash)
    check_layout(model.config)
    _check_tokenizer(tokenizer)
    if weight_type == "q8_0":
        _check_blocks(model.config)
    writer = _convert(model, tokenizer, out.stem, weight_type)
    make_folder(out.parent)
    _save(writer, out)


def _check_tokenizer(tokenizer: Tokenizer) -> None:
    if pattern_name(tokenizer) not in _PRE_TOKENIZERS:
        raise UserError(
            f"tokenizer.pattern: expected {', '.join(_PRE_TOKENIZERS)}, got {quote(tokenizer.pattern)}, for which "
            "llama.cpp has no name, or with which it splits some texts differently; train a tokenizer with one of the "
            "expected patterns, or export to Hugging Face's format"
        )
    # llama.cpp ignores merges with the pattern of Llama 3, and never with the others.
    if tokenizer.ignore_merges != (pattern_name(tokenizer) == "llama3") and tokenizer.token_without_merges:
        raise UserError(
            f"the merges do not make the token {quote(tokenizer.token_without_merges)}, so that llama.cpp would encode "
            "texts differently; export to Hugging Face's format"
        )
    if not tokenizer.merges:
        raise UserError("the tokenizer has no merges, and llama.cpp needs at least one; raise tokenizer.vocab_size")


def _check_blocks(config: ModelConfig) -> None:
    for name, width in (("d_model", config.d_model), ("d_ff", config.d_ff)):
        if width % q8_0.BLOCK:
            raise UserError(f"model.{name}: q8_0 needs a multiple of {q8_0.BLOCK}, got {width}; export f16")


def _convert(model: TransformerLM, tokenizer: Tokenizer, name: str, weight_type: WeightType) -> "GGUFWriter":
    """Return a writer that holds the whole content of the file in memory."""
    import gguf

    config = model.config
    architecture = gguf.MODEL_ARCH.QWEN3 if config.qk_norm else gguf.MODEL_ARCH.LLAMA
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[weight_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.d_head)
    writer.add_value_length(config.d_head)
    writer.add_layer_norm_rms_eps(norm_eps(model))
    writer.add_rope_dimension_count(config.d_head)
    writer.add_rope_freq_base(config.rope_theta)

    texts = token_texts(tokenizer)
    special = set(tokenizer.special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZERS[pattern_name(tokenizer) or ""])
    writer.add_token_list(texts)
    writer.add_token_types([gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL for text in texts])
    writer.add_token_merges(merge_texts(tokenizer))
    writer.add_bos_token_id(tokenizer.end_of_text_id)
    writer.add_eos_token_id(tokenizer.end_of_text_id)
    writer.add_add_bos_token(True)  # a prompt is the beginning of a document (see lm/export/hugging_face.py)

    gguf_names = gguf.get_tensor_name_map(architecture, config.num_layers)
    matrix_type = gguf.GGMLQuantizationType[weight_type.upper()]
    weights = llama_weights(model, half_split=config.qk_norm)
    for llama_name, weight in tqdm(weights.items(), "converting", unit="tensor", disable=None):
        gguf_name = gguf_names.get_name(llama_name, (".weight",))
        if gguf_name is None:
            raise UserError(f"cannot export this model: GGUF has no name for {llama_name}; update the package gguf")
        kind = matrix_type if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        if weight.ndim == 2 and weight.abs().max() > _LARGEST[weight_type]:
            raise UserError(f"{llama_name} has weights that {weight_type} cannot represent; export f32")
        is_q8_0 = kind is gguf.GGMLQuantizationType.Q8_0
        data = q8_0.gguf_bytes(weight).numpy() if is_q8_0 else gguf.quantize(weight.numpy(), kind)
        writer.add_tensor(gguf_name, data, raw_dtype=kind)
    return writer


def _save(writer: "GGUFWriter", out: Path) -> None:
    part = _part(out)
    with translate_write_errors(out):
        try:
            writer.write_header_to_file(part)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file(progress=sys.stderr.isatty())
            writer.close()
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, out)
        except BaseException:
            writer.close()
            part.unlink(missing_ok=True)
            raise


def _part(out: Path) -> Path:
    """The file to write, until it is complete."""
    return out.with_name(out.name + ".part")
