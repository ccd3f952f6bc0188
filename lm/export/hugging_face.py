"""Export a model to a folder that transformers loads without any code of this project.

A prompt is the beginning of a document, which follows the end of another one in the training text. The exported
tokenizer therefore puts the end-of-text token before every text, as `lm generate` does.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save

from lm.atomic import atomic_write, make_folder, require_new_folder, write_json, write_text
from lm.corpus.config import END_OF_TEXT
from lm.export.llama import check_layout, hugging_face_config, llama_weights
from lm.export.model_card import model_card
from lm.export.tokenizer_json import tokenizer_json
from lm.model.files import load_model
from lm.tokenizer.tokenizer import Tokenizer


def export_hugging_face(
    model_folder: Path, tokenizer_folder: Path, out: Path, raw: Path | None = None, metrics: Path | None = None
) -> None:
    """Write `config.json`, `model.safetensors` (float32), the tokenizer, the generation defaults and a model card.

    Args:
        model_folder: the output of the stage train.
        tokenizer_folder: the tokenizer that the model was trained with.
        out: the folder to write; it must be empty, or not exist yet. `config.json` is written last, so that
            transformers does not load an incomplete export.
        raw: the output of the stage download. The model card describes the data from its manifest, without local paths.
        metrics: a JSON file of metrics for the model card, such as metrics/train.json.

    Raises:
        UserError: the format cannot represent the model or its tokenizer, a file cannot be read, or `out` is not empty;
            all of this is checked before anything is written. Also if a file cannot be written.
    """
    require_new_folder(out)
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = load_model(model_folder, tokenizer.hash)
    check_layout(model.config)
    tokenizer_content = {**tokenizer_json(tokenizer), "post_processor": _begin_document(tokenizer.end_of_text_id)}
    config = hugging_face_config(model, tokenizer.end_of_text_id)
    weights = llama_weights(model, half_split=True)
    card = model_card(out.resolve().name, model, raw, metrics)
    make_folder(out)
    with atomic_write(out / "model.safetensors") as file:
        file.write(save(weights, {"format": "pt"}))  # some programs require the format in the metadata
    write_json(out / "tokenizer.json", tokenizer_content)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,  # for programs that do not read the post-processor in tokenizer.json
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",  # so that every prompt of a batch continues at its right end
        "model_max_length": model.config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", tokenizer_config)
    generation_config = {f"{name}_token_id": tokenizer.end_of_text_id for name in ("bos", "eos", "pad")}
    write_json(out / "generation_config.json", generation_config)
    write_text(out / "README.md", card)
    write_json(out / "config.json", config)


def _begin_document(end_of_text_id: int) -> dict[str, Any]:
    """The post-processor of `tokenizer.json` that puts the end-of-text token before every text."""
    first, second = ({"SpecialToken": {"id": END_OF_TEXT, "type_id": number}} for number in (0, 1))
    text, other_text = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second, other_text],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [end_of_text_id], "tokens": [END_OF_TEXT]}},
    }
