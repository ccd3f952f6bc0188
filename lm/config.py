"""params.yaml -> typed, frozen dataclasses; nothing else reads YAML.

A section's dataclass lives in the `config.py` of the room it configures and has no default values: params.yaml
is the only place that holds them. `load` validates the whole file, so that a stage refuses a mistake in any
section before it starts to work:

    model.norm: expected 'rmsnorm' | 'layernorm' | 'none', got False
"""

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lm.corpus.config import DataConfig
from lm.errors import UserError
from lm.generation.config import SampleConfig
from lm.model.config import ModelConfig
from lm.studies.config import AblateConfig, SwitchesConfig
from lm.tokenizer.config import TokenizerConfig
from lm.training.config import OptimConfig, RuntimeConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Params:
    """The whole of params.yaml."""

    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    sample: SampleConfig
    ablate: AblateConfig
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        _check_schedule("train", self.train.max_steps, self.optim.warmup_steps, self.optim)
        for name in self.ablate.run:
            switches = self.ablate.variants[name]
            try:
                _check_schedule("ablate", self.ablate.max_steps, self.optim.warmup_steps, switches)
                dataclasses.replace(self.model, **{k: v for k, v in vars(switches).items() if k in vars(self.model)})
            except ValueError as error:
                raise ValueError(f"ablate.variants.{name}: {error}") from None


def _check_schedule(section: str, max_steps: int, warmup_steps: int, schedule: OptimConfig | SwitchesConfig) -> None:
    falling = schedule.decay_steps if schedule.schedule == "wsd" else 0
    if warmup_steps + falling > max_steps:
        raise ValueError(
            f"{section}.max_steps: expected at least the schedule's warmup_steps and decay_steps, "
            f"{warmup_steps + falling} together, got {max_steps}"
        )


def load(path: Path) -> Params:
    """Read and validate the whole of a params.yaml.

    Raises:
        UserError: the file cannot be read, is not YAML, or a key is unknown, missing, of the wrong type or out of
            range; the message names the key, what was expected and what was got.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run from the project's folder") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}") from error
    try:
        values = yaml.load(text, Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except ValueError as error:  # a number that Python refuses
        raise UserError(f"{path}: not valid YAML: {error}") from error
    _complete_variants(values)
    try:
        return _build(Params, values, "")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _complete_variants(values: Any) -> None:
    """Give each of `ablate.variants`, which holds what it changes, the rest of `ablate.switches`."""
    match values:
        case {"ablate": {"switches": dict(switches), "variants": dict(variants)}}:
            for name, changes in variants.items():
                if isinstance(changes, dict):
                    variants[name] = {**switches, **changes}


def _build(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`, or a ValueError that names `key`."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, key)
    origin = get_origin(kind)
    if origin is list and isinstance(value, list):
        (item,) = get_args(kind)
        return [_build(item, element, f"{key}[{index}]") for index, element in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        _, item = get_args(kind)
        return {str(name): _build(item, element, f"{key}.{name}") for name, element in value.items()}
    if origin is Literal:
        # `True == 1`, so compare types too: a switch is always a string.
        if isinstance(value, str) and value in get_args(kind):
            return value
    elif kind is float:
        if type(value) in (int, float) and abs(value) < math.inf:
            try:
                return float(value)
            except OverflowError:  # a whole number of hundreds of digits
                pass
    elif kind is str:
        # Half of a surrogate pair can be written in YAML, but never into a file.
        if type(value) is str and value == value.encode(errors="ignore").decode():
            return value
    elif type(value) is kind:
        return value
    raise ValueError(f"{key}: expected {_describe(kind)}, got {value!r}")


def _build_dataclass(kind: Any, value: Any, key: str) -> Any:
    prefix = f"{key}." if key else ""
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'the file'}: expected a section of keys, got {value!r}")
    types = get_type_hints(kind)
    for name in value:
        if name not in types:
            close = difflib.get_close_matches(str(name), types, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; the keys are {', '.join(types)}"
            raise ValueError(f"{prefix}{name}: unknown key{hint}")
    for name in types:
        if name not in value:
            raise ValueError(f"{prefix}{name}: missing key, expected {_describe(types[name])}")
    fields = {name: _build(types[name], value[name], f"{prefix}{name}") for name in types}
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(repr(choice) for choice in get_args(kind))
    if dataclasses.is_dataclass(kind):
        return "a section of keys"
    if isinstance(kind, GenericAlias):
        return "a list" if get_origin(kind) is list else "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]


class _Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 3e-05 is a number (PyYAML reads text), `off` and `no` are text (PyYAML reads False).

    `dvc exp run -S optim.max_learning_rate=3e-5` writes 3e-05, and DVC itself reads params.yaml by these rules.
    """

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # PyYAML's own would read 010 as octal and 1_000 as a number.
        return int(self.construct_scalar(node), 0 if "0x" in node.value or "0o" in node.value else 10)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.construct_yaml_int)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _Yaml12Loader.construct_yaml_float)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
