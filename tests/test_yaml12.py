"""The rules of YAML 1.2."""

import math

import pytest
import yaml

from lm.errors import UserError
from lm.yaml12 import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("written", "meant"),
    [("off", "off"), ("no", "no"), ("true", True), ("010", 10), ("0o17", 15), ("0x1F", 31), ("1e3", 1000.0),
     (".5", 0.5), ("3e-05", 3e-5), (".inf", math.inf), ("12:30", "12:30"), ("1_000", "1_000"), ("~", None), ("", None),
     ("-7", -7), ("<|x|>", "<|x|>")],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(written, meant):
    value = parse_yaml(f"key: {written}")["key"]
    assert value == meant and type(value) is type(meant)


@pytest.mark.parametrize("text", ["a: \0", "a: " + "9" * 5000, "a: !!timestamp 1", "[" * 3000, "{a: " * 1000])
def test_text_that_cannot_be_parsed_is_reported_in_one_line(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"some.yaml(:1)?: not valid YAML: .+\Z"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: !!timestamp 1\n", "2: not valid YAML: cannot read '1' as timestamp"),
        ("a: !!int x\n", "1: not valid YAML: cannot read 'x' as int"),
        ("a: !!bool x\n", "1: not valid YAML: cannot read 'x' as bool"),
        ("a: !!float x\n", "1: not valid YAML: cannot read 'x' as float"),
        ("a: " + "9" * 5000, f"1: not valid YAML: cannot read '{'9' * 36} [...] {'9' * 35}' as int"),
    ],
)
def test_a_value_that_does_not_match_its_tag_is_quoted(tmp_path, text, message):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}:{message}"


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}", "a: &x [1]\nb: *x", "a: &x {b: 1}\nc: [*x, *x]"])
def test_aliases_that_could_expand_without_end_are_refused(text):
    with pytest.raises(yaml.YAMLError, match="an alias can only stand for a single value"):
        parse_yaml(text)


def test_an_alias_of_a_single_value_is_read():
    assert parse_yaml("a: &x 3e-05\nb: *x") == {"a": 3e-05, "b": 3e-05}


def test_a_syntax_error_is_reported_with_its_line(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("a: 1\nb: [\n")
    with pytest.raises(UserError, match=r"some.yaml:3: not valid YAML: "):
        read_yaml(path)
