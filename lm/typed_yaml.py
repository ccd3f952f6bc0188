"""Read YAML by the rules of YAML 1.2, and turn it into typed dataclasses.

    build(Params, read_yaml(Path("params.yaml")))

A value of the wrong type is refused with a line that names the key, what was expected and what was found:

    model.norm: expected 'rmsnorm' | 'layernorm' | 'none', got False
"""

import dataclasses
import difflib
import math
import re
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from lm.errors import UserError

T = TypeVar("T")


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run from the project's folder") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())  # str(error) has several lines
        raise UserError(f"{where}: not valid YAML: {problem}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        # A number of thousands of digits, a value that does not match its tag (PyYAML raises AttributeError for
        # `!!timestamp 1`), or thousands of nested lists.
        raise UserError(f"{path}: not valid YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML text.

    >>> parse_yaml("[3e-05, off, 010]")  # PyYAML by itself reads ['3e-05', False, 8]
    [3e-05, 'off', 10]

    Raises:
        yaml.YAMLError: the text is not YAML, or a mapping has the same key twice.
        ValueError: Python cannot represent a number.
    """
    return yaml.load(text, Loader=_Yaml12Loader)


def build(kind: type[T], value: Any) -> T:
    """Convert a parsed mapping into the dataclass `kind`, whose fields may themselves be dataclasses, lists and dicts.

    Every field needs a value of exactly its type, except that a whole number is accepted for a float.

    Raises:
        ValueError: a key is unknown, missing or has a value of the wrong type, or a dataclass refused its values; the
            message starts with the key.
    """
    return cast(T, _build_dataclass(kind, value, ""))


def _build(kind: Any, value: Any, key: str) -> Any:
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
        # `True == 1`, so check the type too: the choices are always strings.
        if isinstance(value, str) and value in get_args(kind):
            return value
    elif kind is float:
        if type(value) in (int, float) and abs(value) < math.inf:
            try:
                return float(value)
            except OverflowError:  # a whole number with hundreds of digits
                pass
    elif kind is str:
        # YAML can express half of a surrogate pair ("\ud800"), which no file can hold.
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
    """The core schema of YAML 1.2, which DVC uses too: 3e-05 is a number, and `off` and `no` are text.

    PyYAML follows YAML 1.1, where 3e-05 is text and `off` and `no` are false. DVC writes such values:
    `dvc exp run -S optim.max_learning_rate=3e-5` puts 3e-05 into params.yaml.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # PyYAML's own constructor reads 010 as octal and accepts 1_000.
        return int(self.construct_scalar(node), 0 if "0x" in node.value or "0o" in node.value else 10)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_Yaml12Loader.yaml_implicit_resolvers = {}  # without those of YAML 1.1
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
