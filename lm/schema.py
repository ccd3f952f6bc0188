"""Validate values that come from outside, such as the content of a JSON file, against a declared type.

    validate(ModelConfig, {"d_model": 96, "norm": "none", ...})
    read_json(Path("data/tokens/manifest.json"), Manifest, "make it with: dvc repro encode_memmap")

The types are dataclasses and TypedDicts, whose fields may be dataclasses, lists and dicts. pydantic compares the value
with the type, without converting anything, and this module reports the first mistake in one line:

    model.norm: expected 'rmsnorm' | 'layernorm' | 'none', got False
"""

import dataclasses
import difflib
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from lm.errors import UserError, quote

if TYPE_CHECKING:  # imported on the first use, so that the modules with the config classes do not need pydantic
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")


def validate(kind: type[T], value: Any, *, ignore_unknown_keys: bool = False) -> T:
    """Return `value` as the type `kind`: mappings become dataclasses, and their `__post_init__` checks the values.

    Every field needs a value of exactly its type, except that a whole number is accepted for a float. NaN, infinity,
    numbers beyond the range of a float, and halves of surrogate pairs are refused everywhere.

    Raises:
        ValueError: a key is unknown or missing, a value has the wrong type, or a dataclass refused its values; the
            message starts with the key.
    """
    # For the 50,000 tokens of a vocabulary, importing pydantic and calling it take a tenth of a second.
    if kind == dict[str, int] and _maps_text_to_numbers(value):
        return cast(T, value)
    from pydantic import ValidationError

    # As JSON, because pydantic's strict mode takes no mapping for a dataclass when it validates Python objects.
    extra: Literal["ignore", "forbid"] = "ignore" if ignore_unknown_keys else "forbid"
    try:
        result: T = _adapter(cast(Hashable, kind)).validate_json(_to_json(value), strict=True, extra=extra)
        return result
    except ValidationError as error:
        # An unknown key comes first: a misspelled one is also missing, and its message has the hint.
        mistakes = sorted(error.errors(include_url=False), key=lambda mistake: not _is_unknown_key(mistake))
        raise ValueError(_describe_mistake(mistakes[0], kind)) from None


def read_json(path: Path, kind: type[T], advice: str, *, ignore_unknown_keys: bool = False) -> T:
    """Read a JSON file and validate its content; see `validate`.

    Args:
        advice: What to do if the file is missing or its content is wrong, such as "make it with: dvc repro train".

    Raises:
        UserError: the file cannot be read, is not JSON, or its content does not match `kind`.
    """
    data = read_bytes(path, advice)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_duplicates)
        return validate(kind, value, ignore_unknown_keys=ignore_unknown_keys)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {advice}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); {advice}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid JSON (nested too deeply); {advice}") from error
    except ValueError as error:
        # Python refuses to read numbers of thousands of digits, in words about its own settings.
        reason = "a number has thousands of digits" if "integer string conversion" in str(error) else error
        raise UserError(f"{path}: {reason}; {advice}") from error


def read_bytes(path: Path, advice: str) -> bytes:
    """Read a file; the arguments and errors are those of `open_file`."""
    with open_file(path, advice) as file:
        return file.read()


@contextmanager
def open_file(path: Path, advice: str) -> Iterator[BufferedReader]:
    """Open a file for reading.

    Args:
        advice: What to do if the file is missing, such as "make it with: dvc repro train".

    Raises:
        UserError: the file is missing, is not a regular file, or cannot be read.
    """
    if "\0" in str(path):
        raise UserError(f"{path}: a path cannot contain a null character")
    try:
        if path.exists() and not path.is_file():  # reading from a named pipe would wait forever
            raise UserError(f"{path}: expected a file, got a {'folder' if path.is_dir() else 'device or pipe'}")
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: there is no such file; {advice}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def check_range(config: object, names: tuple[str, ...], low: int, high: int) -> None:
    """Check that attributes of a config are from `low` to `high`; called by the `__post_init__` of its class.

    Raises:
        ValueError: one of them is not; the message starts with its name.
    """
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            limit = f"{low} or more" if value < low else f"at most {high:,}"
            raise ValueError(f"{name}: expected {limit}, got {quote(value)}")


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {quote(twice)} appears twice")
    return result


def _maps_text_to_numbers(value: Any) -> bool:
    """Return whether a value is a mapping of valid text to whole numbers of at most 64 bits."""
    if type(value) is not dict or not {*map(type, value)} <= {str} or not {*map(type, value.values())} <= {int}:
        return False
    names = "".join(value)
    return names == names.encode(errors="ignore").decode() and max(map(abs, value.values()), default=0) < 1 << 63


def _refuse(value: Any) -> NoReturn:
    raise ValueError(f"expected text, numbers, lists and mappings, got {quote(value)}")


def _to_json(value: Any) -> bytes:
    """Raises ValueError for what no field can hold: NaN, infinity, numbers beyond floats, halves of surrogate pairs."""
    try:
        data = json.dumps(value, default=_refuse, ensure_ascii=False, allow_nan=False).encode()
        is_suspect = re.search(rb"\d{309}", data) is not None
    except ValueError:
        if (unusable := _find_unusable(value, ())) is None:
            raise
        raise ValueError(unusable) from None
    if is_suspect and (unusable := _find_unusable(value, ())):
        raise ValueError(unusable)
    return data


def _find_unusable(value: Any, location: tuple[str | int, ...]) -> str | None:
    """Return a message about the first value that no field can hold, or None."""
    match value:
        case dict():
            children = list(value.items())
            if unusable := next(filter(None, (_find_unusable(name, location) for name in value)), None):
                return unusable
        case list():
            children = list(enumerate(value))
        case float() | int() if not abs(value) <= sys.float_info.max:
            return f"{_key(location)}: expected a number, got {quote(value)}"
        case str() if value != value.encode(errors="ignore").decode():
            return f"{_key(location)}: expected text, got {quote(value)}"
        case _:
            return None
    return next(filter(None, (_find_unusable(child, (*location, name)) for name, child in children)), None)


def _is_unknown_key(mistake: "ErrorDetails") -> bool:
    return mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden")


def _describe_mistake(mistake: "ErrorDetails", kind: Any) -> str:
    location = mistake["loc"]
    key = _key(location)
    if _is_unknown_key(mistake):
        known = list(get_type_hints(_type_at(kind, location[:-1])))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {_key((*location[:-1], close[0]))}?" if close else f"the keys are {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if mistake["type"] == "json_invalid":  # the JSON is our own, so only its depth can be the reason
        return f"{key}: nested too deeply"
    if mistake["type"] == "value_error":  # raised by the __post_init__ of the dataclass at this location
        return f"{key}.{mistake['ctx']['error']}" if location else str(mistake["ctx"]["error"])
    if mistake["type"] == "greater_than_equal":
        return f"{key}: expected {mistake['ctx']['ge']} or more, got {quote(mistake['input'])}"
    expected = _describe_type(_type_at(kind, location))
    if mistake["type"] == "missing":
        return f"{key}: missing key, expected {expected}"
    return f"{key}: expected {expected}, got {quote(mistake['input'])}"


def _key(location: tuple[str | int, ...]) -> str:
    """Write the position of a value as in `sample.prompts[0]`."""
    parts = [f"[{name}]" if isinstance(name, int) else f".{quote(name)[1:-1] or quote(name)}" for name in location]
    return "".join(parts).removeprefix(".") or "the file"


def _type_at(kind: Any, location: tuple[str | int, ...]) -> Any:
    """Return the declared type of the value at `location` within a value of the type `kind`."""
    for name in location:
        # Otherwise it is an item of a list or a value of a mapping.
        kind = get_type_hints(kind)[str(name)] if _has_keys(kind) else get_args(kind)[-1]
        if isinstance(kind, types.UnionType):  # X | None
            kind = get_args(kind)[0]
    return kind


def _has_keys(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or is_typeddict(kind)


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(repr(choice) for choice in get_args(kind))
    if _has_keys(kind):
        return "a section of keys"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}
    return words.get(get_origin(kind) or kind, "a mapping")
