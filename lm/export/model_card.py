"""The `README.md` of an exported model: how to load it, its shape, what it was trained on, how well."""

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

A decoder-only Transformer of {num_parameters:,} parameters in the layout of {family}, in float32. It continues text.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")  # the path of this folder
model = AutoModelForCausalLM.from_pretrained("{name}")
prompt = tokenizer("Once upon a time", return_tensors="pt")
text = model.generate(**prompt, max_new_tokens={max_new_tokens}, do_sample=True, temperature=0.7, top_p=0.95)
print(tokenizer.decode(text[0], skip_special_tokens=True))
```

`<|endoftext|>` ends a document. Of a text longer than `context_length` tokens, give the model the end.

## Model

"""


def model_card(name: str, model: TransformerLM, raw: Path | None, metrics: Path | None) -> str:
    """The text of the card; `raw` and `metrics` as for `lm.export.hugging_face.export_hugging_face`.

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
    return "unknown" if value is None else str(value)  # metrics of a run that diverged


def _data(path: Path) -> str:
    manifest = _read(path)
    try:
        lines = [f"Source: {manifest['source']}", ""]
        for split, facts in manifest["splits"].items():
            lines.append(f"- {split}: {facts['documents']:,} documents, {facts['bytes']:,} bytes")
        addresses = [urlsplit(file["address"]) for file in manifest["provenance"] if "address" in file]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); make it again with: dvc repro download") from error
    for address in addresses:
        # Without a name and password, and without a query, which may hold a signature.
        lines.append(f"- <{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}>")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); leave it out, or make it with: dvc repro"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); leave it out, or make it again with: dvc repro") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}; leave it out, or name another")
    return values
