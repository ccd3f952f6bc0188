"""Apply a preset: write its values into params.yaml and keep the comments.

Each file of this folder is a preset. All presets set the same keys, so that applying one leaves nothing of another
behind.
"""

import io
import os
import re
import tempfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lm import config
from lm.atomic import write_text
from lm.errors import UserError


def preset_names() -> list[str]:
    """Return the names of all presets; `laptop` is params.yaml as released."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def preset_values(name: str) -> dict[str, Any]:
    """Return the values of a preset, section by section."""
    values: dict[str, Any] = YAML(typ="safe").load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def apply_preset(name: str, path: Path) -> list[str]:
    """Rewrite the params.yaml at `path` and return the changes as `section.key: old -> new`.

    The file is written only if the result is valid.

    Raises:
        UserError: there is no such preset, the file is invalid, or its other values do not fit the preset.
    """
    if name not in preset_names():
        raise UserError(f"no preset {name!r}; the presets are {', '.join(preset_names())}")
    config.load(path)
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: is read-only; make it writable to apply the preset")
    yaml = YAML()
    yaml.indent(mapping=2, sequence=2, offset=0)
    yaml.width = 4096  # never fold a long line
    params = yaml.load(path)
    changes = _merge(params, preset_values(name), "")
    text = io.StringIO()
    yaml.dump(params, text)
    # ruamel leaves a comment in its old column; move it to two spaces after the new value.
    rewritten = re.sub(r"^( +\w+: \S+) +#", r"\1  #", text.getvalue(), flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        write_text(trial, rewritten)
        try:
            config.load(trial)
        except UserError as error:
            reason = str(error).partition(": ")[2]
            raise UserError(f"the preset {name} does not fit the rest of {path}: {reason}") from error
    if changes:
        write_text(path.resolve(), rewritten)  # a link stays a link
    return changes


def _folder() -> Traversable:
    return resources.files("lm") / "presets"


def _merge(target: dict[str, Any], source: dict[str, Any], prefix: str) -> list[str]:
    """Copy the values of `source` that differ into `target`, section by section, and return what changed."""
    changes = []
    for key, value in source.items():
        if isinstance(value, dict):
            changes += _merge(target[key], value, f"{prefix}{key}.")
        elif target[key] != value:
            changes.append(f"{prefix}{key}: {target[key]} -> {value}")
            target[key] = value
    return changes
