"""The model card (`README.md`) of an exported model: how to load it, its configuration, its data and its metrics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm.errors import UserError, quote
from lm.model.transformer import TransformerLM
from lm.schema import read_json
from lm.tokens.manifest import TextFacts

_ADVICE = "leave it out, or make it with: dvc repro"

_TEXT = """---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A decoder-only Transformer language model with {num_parameters:,} parameters, in the layout of {family} and in float32.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({quoted})  # the path of this folder
model = AutoModelForCausalLM.from_pretrained({quoted})
prompt = tokenizer("Once upon a time", return_tensors="pt")
text = model.generate(**prompt, max_new_tokens={max_new_tokens}, do_sample=True, temperature=0.7, top_p=0.95)
print(tokenizer.decode(text[0], skip_special_tokens=True))
```

`<|endoftext|>` ends a document. The tokenizer puts one before every prompt, because a prompt begins a new document.
The model sees at most `context_length` tokens: of a longer text, pass the last ones.

## Model

"""


@dataclass(frozen=True, kw_only=True)
class _Origin:
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What the card shows of `data/raw/manifest.json`; other keys are ignored."""

    source: str
    splits: dict[str, TextFacts]
    provenance: list[_Origin]


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
    quoted = json.dumps(name, ensure_ascii=False)  # a folder may have quotation marks and newlines in its name
    text = _TEXT.format(
        name=quoted[1:-1],
        quoted=quoted,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        family="Qwen3" if config.qk_norm else "Llama",
        max_new_tokens=min(100, config.context_length // 2),
    )
    text += _table({**vars(config), "vocab_size": model.vocab_size})
    if raw is not None:
        text += "\n## Data\n\n" + _data(raw / "manifest.json")
    if metrics is not None:
        text += "\n## Metrics\n\n" + _table(_metrics(metrics))
    return text


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_readable(value)} |\n" for name, value in values.items()]
    return "".join(["| | |\n", "|---|---|\n", *rows])


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "unknown" if value is None else str(value)  # a run that diverged has metrics without a value


def _metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path, dict[str, Any], _ADVICE)
    for name, value in metrics.items():
        if not isinstance(value, int | float | str | None) or not (name + str(value)).isprintable():
            raise UserError(f"{path}: {quote(name)[1:-1]}: expected a number or a word, got {quote(value)}; {_ADVICE}")
    return metrics


def _data(path: Path) -> str:
    manifest = read_json(path, _Manifest, _ADVICE, ignore_unknown_keys=True)
    lines = [f"Source: {quote(manifest.source)[1:-1]}", ""]
    for split, facts in manifest.splits.items():
        lines.append(f"- {quote(split)[1:-1]}: {facts['documents']:,} documents, {facts['bytes']:,} bytes")
    lines += [f"- <{_without_secrets(path, origin.url)}>" for origin in manifest.provenance if origin.url is not None]
    return "\n".join(lines) + "\n"


def _without_secrets(path: Path, url: str) -> str:
    """Leave out the user name and password of a URL, and the query, which may contain a signature."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{path}: provenance: {quote(url)} is not a URL ({error}); {_ADVICE}") from error
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
