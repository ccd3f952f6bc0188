"""Export a model to a folder that transformers loads without any code of this project."""

from pathlib import Path

from safetensors.torch import save

from lm.atomic import atomic_write, make_folder, write_json, write_text
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
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
        out: the folder to write, created if it does not exist. `config.json` is written last, so that transformers
            does not load an incomplete export.
        raw: the output of the stage download. The model card describes the data from its manifest, without local paths.
        metrics: a JSON file of metrics for the model card, such as metrics/train.json.

    Raises:
        UserError: the format cannot represent the model or its tokenizer, a file cannot be read, or `out` already
            contains a model or a README.md; all of this is checked before anything is written. Also if a file cannot be
            written.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = load_model(model_folder, tokenizer.hash)
    check_layout(model.config)
    for name in ("config.json", "README.md"):  # README.md, so that an export to the project's folder keeps its README
        if (out / name).exists():
            raise UserError(f"{out / name}: already exists; choose another folder, or delete it")
    tokenizer_content = tokenizer_json(tokenizer)
    config = hugging_face_config(model, tokenizer.end_of_text_id)
    weights = llama_weights(model, half_split=True)
    card = model_card(out.resolve().name, model, raw, metrics)
    make_folder(out)
    with atomic_write(out / "model.safetensors") as file:
        file.write(save(weights, {"format": "pt"}))  # some programs require the format in the metadata
    write_json(out / "tokenizer.json", tokenizer_content)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
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
