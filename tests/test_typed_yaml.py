"""The rules of YAML 1.2, and what may be built from it. Messages are tested on the real params.yaml in test_config."""

import math
from dataclasses import dataclass

import pytest

from lm.errors import UserError
from lm.typed_yaml import build, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("written", "meant"),
    [("off", "off"), ("no", "no"), ("true", True), ("010", 10), ("0o17", 15), ("0x1F", 31), ("1e3", 1000.0),
     (".5", 0.5), ("3e-05", 3e-5), (".inf", math.inf), ("12:30", "12:30"), ("1_000", "1_000"), ("~", None), ("", None),
     ("-7", -7), ("<|x|>", "<|x|>")],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(written, meant):
    value = parse_yaml(f"key: {written}")["key"]
    assert value == meant and type(value) is type(meant)


@dataclass(frozen=True, kw_only=True)
class Section:
    rate: float
    names: list[str]

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate: expected 0 or more, got {self.rate}")


@dataclass(frozen=True, kw_only=True)
class File:
    first: Section
    more: dict[str, Section]


def test_nested_dataclasses_are_built_and_a_whole_number_is_accepted_for_a_float():
    read = build(File, parse_yaml("{first: {rate: 1, names: [a]}, more: {x: {rate: .5, names: []}}}"))
    assert read == File(first=Section(rate=1.0, names=["a"]), more={"x": Section(rate=0.5, names=[])})
    assert type(read.first.rate) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rate: fast, names: []}", "rate: expected a number, got 'fast'"),
        ("{rate: 1, names: [a, 2]}", "names[1]: expected text, got 2"),
        ("{rate: 1}", "names: missing key, expected a list"),
        ("{rate: 1, names: [], nam: 1}", "nam: unknown key; did you mean names?"),
        ("{rate: -1, names: []}", "rate: expected 0 or more, got -1.0"),
        ("[]", "the file: expected a section of keys, got []"),
    ],
)
def test_the_message_names_the_key(text, message):
    with pytest.raises(ValueError) as error:
        build(Section, parse_yaml(text))
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["a: \0", "a: " + "9" * 5000, "a: !!timestamp 1", "[" * 3000])
def test_text_that_cannot_be_parsed_is_reported_in_one_line(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"some.yaml: not valid YAML: .+\Z"):
        read_yaml(path)


def test_a_syntax_error_is_reported_with_its_line(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("a: 1\nb: [\n")
    with pytest.raises(UserError, match=r"some.yaml:3: not valid YAML: "):
        read_yaml(path)
