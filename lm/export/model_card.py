"""The model card (`README.md`) of an exported model: how to load it, its configuration, its data and its metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm.errors import UserError
from lm.model.transformer import TransformerLM

_TEXT = """---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A decoder-only Transformer language model with {num_parameters:,} parameters, in the layout of {family} and in float32.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")  # the path of this folder
model = AutoModelForCausalLM.from_pretrained("{name}")
prompt = tokenizer("Once upon a time", return_tensors="pt")
text = model.generate(**prompt, max_new_tokens={max_new_tokens}, do_sample=True, temperature=0.7, top_p=0.95)
print(tokenizer.decode(text[0], skip_special_tokens=True))
```

`<|endoftext|>` ends a document. The model sees at most `context_length` tokens: of a longer text, pass the last ones.

## Model

"""


def model_card(name: str, model: TransformerLM, raw: Path | None, metrics: Path | None) -> str:
    """Return the text of the model card.

    Args:
        name: the name of the model, used as its title and in the example.
        model: the model that the card describes.
        raw: the output of the stage download; its manifest describes the data.
        metrics: a JSON file of metrics.

    Raises:
        UserError: a file cannot be read or is damaged.
    """
    config = model.config
    text = _TEXT.format(
        name=name,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        family="Qwen3" if config.qk_norm else "Llama",
        max_new_tokens=min(100, config.context_length // 2),
    )
    text += _table({**vars(config), "vocab_size": model.vocab_size})
    if raw is not None:
        text += "\n## Data\n\n" + _data(raw / "manifest.json")
    if metrics is not None:
        text += "\n## Metrics\n\n" + _table(_read(metrics))
    return text


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_readable(value)} |\n" for name, value in values.items()]
    return "".join(["| | |\n", "|---|---|\n", *rows])


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "unknown" if value is None else str(value)  # a run that diverged has metrics without a value


def _data(path: Path) -> str:
    manifest = _read(path)
    try:
        lines = [f"Source: {manifest['source']}", ""]
        for split, facts in manifest["splits"].items():
            lines.append(f"- {split}: {facts['documents']:,} documents, {facts['bytes']:,} bytes")
        addresses = [urlsplit(file["url"]) for file in manifest["provenance"] if "url" in file]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); recreate it with: dvc repro download") from error
    # Leave out the user name and password, and the query, which may contain a signature.
    lines += [f"- <{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}>" for url in addresses]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); omit it, or create it with: dvc repro") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); omit it, or recreate it with: dvc repro") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}; omit it, or recreate it")
    return values
