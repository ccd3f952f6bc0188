"""Presets: whole set-ups as files that hold only what differs, written into params.yaml with its comments kept.

Every preset sets the same keys, so that applying one leaves nothing of another behind.
"""

import io
import re
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lm import config
from lm.atomic import write_text
from lm.errors import UserError


def names() -> list[str]:
    """All presets, `laptop` being params.yaml as it is released."""
    folder = resources.files("lm") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def apply(name: str, path: Path) -> list[str]:
    """Rewrite the params.yaml at `path`; returns the changed keys as `section.key: old -> new`.

    Raises:
        UserError: there is no such preset, or the file as it is is not valid.
    """
    if name not in names():
        raise UserError(f"no preset {name!r}; there are {', '.join(names())}")
    config.load(path)
    yaml = YAML()
    yaml.indent(mapping=2, sequence=2, offset=0)
    yaml.width = 4096  # never fold a long line
    params = yaml.load(path)
    preset = YAML(typ="safe").load((resources.files("lm") / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    changes = _merge(params, preset, "")
    text = io.StringIO()
    yaml.dump(params, text)
    # ruamel keeps a comment in its old column; put it two spaces behind the new value.
    rewritten = re.sub(r"^( +\w+: \S+) +#", r"\1  #", text.getvalue(), flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        write_text(trial, rewritten)
        try:
            config.load(trial)
        except UserError as error:
            raise UserError(
                f"the preset {name} does not fit the rest of {path}: {str(error).partition(': ')[2]}"
            ) from error
    write_text(path, rewritten)
    return changes


def _merge(target: Any, source: dict[str, Any], prefix: str) -> list[str]:
    changes = []
    for key, value in source.items():
        if isinstance(value, dict):
            changes += _merge(target[key], value, f"{prefix}{key}.")
        elif target[key] != value:
            changes.append(f"{prefix}{key}: {target[key]} -> {value}")
            target[key] = value
    return changes
