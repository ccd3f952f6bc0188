"""Parse and validate the body of a request to /v1/completions.

    {"model": "model", "prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.7, "top_k": 40, "seed": 1}

The fields are those of OpenAI's API (https://platform.openai.com/docs/api-reference/completions), and three samplers
that it does not have: `top_k`, `min_p` and `repetition_penalty`. Fields that are unknown, unsupported, of a wrong type
or out of range are errors; nothing is ignored. A field that is null counts as omitted.
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from lm.generation.config import SamplerConfig

MAX_STOPS = 4
MAX_LOGPROBS = 5

# Fields of OpenAI's API that are not supported here, with the values that have no effect.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "suffix": ("",),
}


@dataclass(frozen=True)
class _Type:
    """A type of JSON values: the Python types that represent it, and its name in messages."""

    python_types: tuple[type, ...]
    name: str

    def includes(self, value: Any) -> bool:
        # In Python, a bool is also an int; in JSON, true is not a number.
        return isinstance(value, self.python_types) and (not isinstance(value, bool) or bool in self.python_types)


_STRING = _Type((str,), "a string")
_STRINGS = _Type((str, list), "a string or an array of strings")
_INTEGER = _Type((int,), "an integer")
_NUMBER = _Type((int, float), "a number")
_BOOLEAN = _Type((bool,), "true or false")
_OBJECT = _Type((dict,), "an object")

# Within these ranges, neither the values nor the results of applying them become 0 or infinity in float32.
_RANGES = {"temperature": (0, 100), "top_p": (0.001, 1), "min_p": (0, 1), "repetition_penalty": (0.1, 10)}
_TYPES = {
    "model": _STRING,
    "prompt": _STRINGS,
    "max_tokens": _INTEGER,
    "temperature": _NUMBER,
    "top_k": _INTEGER,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "n": _INTEGER,
    "seed": _INTEGER,
    "stop": _STRINGS,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "logprobs": _INTEGER,
    "user": _STRING,
}

_MAX_ROWS = 1024


class ApiError(Exception):
    """An error response: a one-line message, the HTTP status, OpenAI's `param` and `code`, and additional headers."""

    def __init__(
        self,
        message: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single request may ask for, and how many texts the server handles at once."""

    request_bytes: int = 1 << 18
    max_tokens: int = 2048  # per text
    choices: int = 16  # texts per request: the number of prompts times `n`
    seconds: float = 120.0  # from the request to the end of its last text
    rows: int = 8  # texts that are generated at the same time
    waiting: int = 32  # texts that wait for a free row

    def __post_init__(self) -> None:
        for name in ("request_bytes", "max_tokens", "choices", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.rows > _MAX_ROWS:
            raise ValueError(f"rows: expected at most {_MAX_ROWS}, since each needs memory, got {self.rows}")
        if self.waiting < 0:
            raise ValueError(f"waiting: expected 0 or more, got {self.waiting}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds: expected a positive number, got {self.seconds}")

    @property
    def max_choices(self) -> int:
        """The number of texts that a request may ask for: `choices`, but no more than the server can hold."""
        return min(self.choices, self.rows + self.waiting)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A request for `n` texts per prompt, generated with the seeds `seed`, `seed` + 1, ..."""

    prompts: list[str]
    max_tokens: int
    sampler: SamplerConfig
    n: int
    seed: int
    stop: list[str]
    stream: bool
    include_usage: bool
    logprobs: int | None


def parse(body: bytes, model: str, limits: Limits) -> CompletionRequest:
    """Parse a request to the model named `model`.

    The defaults are OpenAI's, such as 16 tokens and temperature 1. Without `seed`, a random one is drawn.

    Raises:
        ApiError: the body is not a valid request, or it exceeds `limits`; the message names the field.
    """
    fields = _read(body)
    if fields.get("model", model) != model:
        message = f"model: expected {model!r}, got {fields['model']!r}; this server has only one model"
        raise ApiError(message, HTTPStatus.NOT_FOUND, param="model", code="model_not_found")
    prompts = _strings("prompt", fields)
    if not prompts:
        raise ApiError("prompt: expected a string or an array of strings, which may be empty", param="prompt")
    stop = _strings("stop", fields)
    if len(stop) > MAX_STOPS or "" in stop:
        raise ApiError(f"stop: expected at most {MAX_STOPS} strings, none of them empty", param="stop")
    n = _integer("n", fields, 1, low=1, high=limits.max_choices)
    if n * len(prompts) > limits.max_choices:
        message = f"n: {n} texts for each of {len(prompts)} prompts are more than the {limits.max_choices} allowed"
        raise ApiError(message, param="n")
    stream = fields.get("stream", False)
    try:
        sampler = SamplerConfig(
            temperature=fields.get("temperature", 1.0),
            top_k=fields.get("top_k", 0),
            top_p=fields.get("top_p", 1.0),
            min_p=fields.get("min_p", 0.0),
            repetition_penalty=fields.get("repetition_penalty", 1.0),
        )
    except ValueError as error:
        raise ApiError(str(error), param=str(error).partition(":")[0]) from error
    return CompletionRequest(
        prompts=prompts,
        max_tokens=_integer("max_tokens", fields, 16, low=1, high=limits.max_tokens),
        sampler=sampler,
        n=n,
        # The maximum leaves room for the seeds of the other texts, which count up from this one.
        seed=_integer("seed", fields, secrets.randbelow(2**32), low=0, high=2**63 - 1 - limits.choices),
        stop=stop,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        logprobs=_integer("logprobs", fields, 0, low=0, high=MAX_LOGPROBS) if "logprobs" in fields else None,
    )


def _read(body: bytes) -> dict[str, Any]:
    """Return the fields that are not null, with known names and correct types."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    fields = {}
    for name, given in value.items():
        if name in _UNSUPPORTED:
            if given is not None and given not in _UNSUPPORTED[name]:
                raise ApiError(f"{name}: not supported; leave it out", param=name, code="unsupported_parameter")
        elif name not in _TYPES:
            raise ApiError(f"{name}: unknown field; the fields are {', '.join(_TYPES)}", param=name)
        elif given is not None:
            if not _TYPES[name].includes(given):
                raise _wrong_type(name, given)
            fields[name] = _number(name, given) if _TYPES[name] is _NUMBER else given
    return fields


def _number(name: str, given: float) -> float:
    low, high = _RANGES[name]
    if not low <= given <= high:
        raise ApiError(f"{name}: expected {low} to {high}, got {_abbreviate(given)}", param=name)
    return float(given)


def _wrong_type(name: str, given: Any) -> ApiError:
    return ApiError(f"{name}: expected {_TYPES[name].name}, got {_abbreviate(given)}", param=name)


def _abbreviate(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "..."


def _integer(name: str, fields: dict[str, Any], default: int, *, low: int, high: int) -> int:
    number = fields.get(name, default)
    if not low <= number <= high:
        raise ApiError(f"{name}: expected {low} to {high}, got {_abbreviate(number)}", param=name)
    return number


def _strings(name: str, fields: dict[str, Any]) -> list[str]:
    given = fields.get(name, [])
    strings = [given] if isinstance(given, str) else given
    if not all(isinstance(string, str) for string in strings):
        raise _wrong_type(name, given)
    return strings


def _include_usage(fields: dict[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if options and not stream:
        raise ApiError("stream_options: allowed only with stream: true", param="stream_options")
    if options.keys() - {"include_usage"} or not isinstance(options.get("include_usage", False), bool):
        raise ApiError("stream_options: expected {include_usage: true or false}", param="stream_options")
    return options.get("include_usage", False)
