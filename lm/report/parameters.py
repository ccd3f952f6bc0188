"""Parameters by their full names, such as `model.d_model`, and how they differ from the presets."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lm.presets.preset import preset_names, preset_values

_DEFAULT = "laptop"  # of presets that are equally close

# Their values are paths, URLs and addresses, which may name a person or a machine.
_PLACES = {"data.train_files", "data.val_files", "train.initial_model", "runtime.cluster"}
_WORDS = {"none", "local", "auto"}  # what else these may be
_WITHHELD = "(not shown)"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their full names.

    >>> flatten({"model": {"d_model": 8, "norm": "none"}})
    {'model.d_model': 8, 'model.norm': 'none'}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    items: dict[str, Any] = {}
    for name, inner in value.items():
        items |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return items


def closest_preset(parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset with the fewest values that differ from `parameters`, and its values, both by their full names."""
    presets = {name: flatten(preset_values(name)) for name in sorted(preset_names(), key=lambda name: name != _DEFAULT)}
    closest = min(presets, key=lambda name: len(differing(parameters, presets[name])))
    return closest, presets[closest]


def differing(parameters: dict[str, Any], preset: dict[str, Any]) -> list[str]:
    """The names of the values of a preset that the parameters do not have."""
    return [name for name, value in preset.items() if parameters.get(name) != value]


def shown(name: str, value: Any) -> str:
    """The value of a parameter as text that can be sent to others.

    >>> shown("sample.top_p", 0.95), shown("train.initial_model", "/srv/model")
    ('0.95', '(not shown)')
    """
    if isinstance(value, list):
        return ", ".join(shown(name, item) for item in value) or "none"
    text = str(value).lower() if isinstance(value, bool) else str(value)  # as YAML writes it
    is_place = name in _PLACES and text not in _WORDS
    is_absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~")
    return _WITHHELD if is_place or is_absolute else text
