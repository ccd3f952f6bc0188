"""Validation against a declared type. Messages are also tested on the real params.yaml in test_config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn, NotRequired

import pytest
from annotated_types import Ge
from typing_extensions import TypedDict

from lm.errors import UserError
from lm.schema import read_bytes, read_json, validate
from lm.yaml12 import parse_yaml


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
    read = validate(File, parse_yaml("{first: {rate: 1, names: [a]}, more: {x: {rate: .5, names: []}}}"))
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
        validate(Section, parse_yaml(text))
    assert str(error.value) == message


class Entry(TypedDict):
    count: Annotated[int, Ge(0)]
    sha256: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    kind: Literal["a", "b"]
    entry: Entry
    rates: list[float]
    more: dict[str, Entry]
    note: str | None = None


GOOD = {"kind": "a", "entry": {"count": 1}, "rates": [1, 2.5], "more": {"x": {"count": 0, "sha256": "f"}}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1, "b": True}, "b: expected a whole number, got True"),
        ({"a": 1.0}, r"a: expected a whole number, got 1\.0"),
        ({"a": 10**400}, "a: expected a number, got 1000"),
        ({"\ud800": 1}, "the file: expected text, got "),
        ([1], r"the file: expected a mapping, got \[1\]"),
    ],
)
def test_a_mapping_of_text_to_numbers(value, message):
    with pytest.raises(ValueError, match=message):
        validate(dict[str, int], value)
    for valid in ({}, {"本": 0, "": -1}, {"a": 10**30}):
        assert validate(dict[str, int], valid) == valid


def test_optional_keys_may_be_missing_and_typed_dicts_stay_dicts():
    manifest = validate(Manifest, GOOD)
    assert (manifest.entry, manifest.rates, manifest.note) == ({"count": 1}, [1.0, 2.5], None)
    assert validate(Manifest, {**GOOD, "note": "text"}).note == "text"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "c"}, "kind: expected 'a' | 'b', got 'c'"),
        ({"kind": ["a"]}, "kind: expected 'a' | 'b', got ['a']"),
        ({"entry": {"count": -1}}, "entry.count: expected 0 or more, got -1"),
        ({"entry": {"count": True}}, "entry.count: expected a whole number, got True"),
        ({"entry": {"count": 1.0}}, "entry.count: expected a whole number, got 1.0"),
        ({"entry": {}}, "entry.count: missing key, expected a whole number"),
        ({"entry": {"count": 1, "sha": "f"}}, "entry.sha: unknown key; did you mean entry.sha256?"),
        ({"entry": None}, "entry: expected a section of keys, got None"),
        ({"rates": {"0": 1}}, "rates: expected a list, got {'0': 1}"),
        ({"rates": [1, None]}, "rates[1]: expected a number, got None"),
        ({"rates": [float("nan")]}, "rates[0]: expected a number, got nan"),
        ({"rates": [10**400]}, f"rates[0]: expected a number, got 1{'0' * 36} [...] {'0' * 36}"),
        ({"more": {"x": {"count": 1e999}}}, "more.x.count: expected a number, got inf"),
        ({"more": {"\ud800": {"count": 1}}}, "more: expected text, got '\\ud800'"),
        ({"more": {"a\nb": {}}}, "more.a\\nb.count: missing key, expected a whole number"),
        ({"": 1}, "'': unknown key; the keys are kind, entry, rates, more, note"),
        ({"more": [1]}, "more: expected a mapping, got [1]"),
        ({"note": 3}, "note: expected text, got 3"),
    ],
)
def test_every_kind_of_mistake_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError) as error:
        validate(Manifest, {**GOOD, **changes})
    assert str(error.value) == message


def test_unknown_keys_may_be_ignored_at_every_level():
    manifest = validate(Manifest, {**GOOD, "x": 1, "entry": {"count": 1, "y": 2}}, ignore_unknown_keys=True)
    assert manifest.entry == {"count": 1}


def test_a_value_that_only_yaml_can_express_is_refused():
    with pytest.raises(ValueError, match="expected text, numbers, lists and mappings, got datetime.date"):
        validate(Section, parse_yaml("{rate: 1, names: [!!timestamp 2001-01-01]}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: not valid JSON (Expecting value)"),
        (b'{"rate": 1,\n"names"}', ":2: not valid JSON (Expecting ':' delimiter)"),
        (b'{"rate": 1, "names": ["\xff"]}', ": not UTF-8 at byte 23"),
        (b"[" * 100_000, ": not valid JSON (nested too deeply)"),
        (b"[" * 500 + b"]" * 500, ": the file: nested too deeply"),
        (b'{"rate": 1, "rate": 2, "names": []}', ": the key 'rate' appears twice"),
        (b'{"rate": 1' + b"0" * 5000 + b"}", ": a number has thousands of digits"),
        (b"null", ": the file: expected a section of keys, got None"),
        (b'{"rate": NaN, "names": []}', ": rate: expected a number, got nan"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path, Section, "make it again")
    assert str(error.value).startswith(f"{path}{message}") and str(error.value).endswith("; make it again")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_not_missing(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    with pytest.raises(UserError, match=r"file.json: there is no such file; make it$"):
        read_json(path, Section, "make it")
    path.write_text("{}")
    with pytest.raises(UserError, match=r"file.json/x: there is no such file; make it$"):
        read_json(path / "x", Section, "make it")

    def refuse(path: Path, mode: str) -> NoReturn:  # as for another user than root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"file.json: cannot be read \(Permission denied\); check the path"):
        read_json(path, Section, "make it")


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: expected a file, got a device or pipe"):
        read_bytes(tmp_path / "pipe", "make it")
    with pytest.raises(UserError, match=r"a\\x00b: a path cannot contain a null character"):
        read_bytes(Path("a\0b"), "make it")
    with pytest.raises(UserError, match="expected a file, got a folder"):
        read_bytes(tmp_path, "make it")
