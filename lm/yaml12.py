"""Read YAML by the rules of YAML 1.2."""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from lm.errors import UserError, quote
from lm.schema import read_bytes


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or is not YAML.
    """
    data = read_bytes(path, "run from the project's folder")
    try:
        return parse_yaml(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())  # str(error) has several lines
        raise UserError(f"{where}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML text.

    >>> parse_yaml("[3e-05, off, 010]")  # PyYAML by itself reads ['3e-05', False, 8]
    [3e-05, 'off', 10]

    Raises:
        yaml.YAMLError: the text is not YAML, a mapping has the same key twice, or a value does not match its tag.
    """
    return yaml.load(text, Loader=_Yaml12Loader)


class _Yaml12Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2, which DVC uses too: 3e-05 is a number, and `off` and `no` are text.

    PyYAML follows YAML 1.1, where 3e-05 is text and `off` and `no` are false. DVC writes such values:
    `dvc exp run -S optim.max_learning_rate=3e-5` puts 3e-05 into params.yaml.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        node = super().compose_node(parent, index)
        # An alias of a list or mapping can contain itself, or expand a few lines to gigabytes.
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            problem, mark = "an alias can only stand for a single value", cast(Any, event.start_mark)
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, KeyError) as error:  # for `!!timestamp 1`, `!!bool x`, or endless digits
            problem = f"cannot read {quote(node.value)} as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}  # keys are text, whatever they look like
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in mapping:
                problem = f"the key {quote(key_node.value)} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            mapping[key_node.value] = self.construct_object(value_node, deep=deep)
        return mapping

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
