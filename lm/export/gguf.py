"""A model as one GGUF file, which llama.cpp runs: f32, f16, or q8_0, eight bits a weight.

Weights go by the names that the package gguf gives Llama's; vectors, the norms, stay float32. llama.cpp turns the
neighbours of a head for Llama, as ours does, and the halves for Qwen3.
"""

import importlib.util
import os
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from lm.atomic import make_folder, translate_write_errors
from lm.errors import UserError
from lm.export.llama import check_layout, llama_weights
from lm.export.tokenizer_json import merge_texts, pattern_name, token_texts
from lm.model.files import load_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

WeightType = Literal["f32", "f16", "q8_0"]

_Q8_0_BLOCK = 32  # weights of a row that share a scale


def export_gguf(model_folder: Path, tokenizer_folder: Path, out: Path, weight_type: WeightType) -> None:
    """Write the file `out`, whole or not at all; folders as for `lm.export.hugging_face.export_hugging_face`.

    Raises:
        UserError: before anything is written, when llama.cpp has no such model, tokenizer or rows of weights, a file
            cannot be read, `out` is there already or gguf is not installed; or when it cannot be written.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed; pip install gguf")
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = load_model(model_folder, tokenizer.hash)
    check_layout(model.config)
    if pattern_name(tokenizer) != "gpt2":
        raise UserError(
            "tokenizer.pattern: gpt4 cannot be exported, since llama.cpp cuts white space at the end of a text "
            "differently; it would have to be gpt2"
        )
    if not tokenizer.merges:
        raise UserError("the tokenizer has no merges and llama.cpp reads none without; raise tokenizer.vocab_size")
    for name in ("d_model", "d_ff"):
        if weight_type == "q8_0" and getattr(model.config, name) % _Q8_0_BLOCK:
            raise UserError(
                f"model.{name} is {getattr(model.config, name)} and would have to be a multiple of {_Q8_0_BLOCK} for "
                "q8_0; export f16"
            )
    if out.exists():
        raise UserError(f"{out}: is there already; name another file, or delete it")
    make_folder(out.parent)
    _write(out, model, tokenizer, weight_type)


def _write(out: Path, model: TransformerLM, tokenizer: Tokenizer, weight_type: WeightType) -> None:
    import gguf

    config = model.config
    architecture = gguf.MODEL_ARCH.QWEN3 if config.qk_norm else gguf.MODEL_ARCH.LLAMA
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(out.stem)
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
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
    writer.add_layer_norm_rms_eps(model.ln_final.eps)
    writer.add_rope_dimension_count(config.d_head)
    writer.add_rope_freq_base(config.rope_theta)

    texts = token_texts(tokenizer)
    special = set(tokenizer.special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types([gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL for text in texts])
    writer.add_token_merges(merge_texts(tokenizer))
    writer.add_bos_token_id(tokenizer.end_of_text_id)
    writer.add_eos_token_id(tokenizer.end_of_text_id)
    writer.add_add_bos_token(False)

    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    matrix_type = gguf.GGMLQuantizationType[weight_type.upper()]
    for name, weight in tqdm(llama_weights(model, halves=config.qk_norm).items(), "converting", unit="tensor"):
        kind = matrix_type if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(weight.numpy(), kind)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=kind)

    part = out.with_name(out.name + ".part")
    with translate_write_errors(out):
        try:
            writer.write_header_to_file(part)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file(progress=True)
            writer.close()
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, out)
        except BaseException:
            writer.close()
            part.unlink(missing_ok=True)
            raise
