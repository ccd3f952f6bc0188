"""The body of a request to /v1/completions, checked field by field.

    {"model": "model", "prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.7, "top_k": 40, "seed": 1}

The fields are those of OpenAI's API (https://platform.openai.com/docs/api-reference/completions) and three samplers of
our own: `top_k`, `min_p` and `repetition_penalty`. Whatever is unknown, of a wrong type, out of range, or a feature
that is not there is refused, never passed over. A field that is null is as if it were left out.
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

# What OpenAI's API has and this one has not: the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "suffix": ("",),
}
_TEXT, _TEXTS, _WHOLE, _NUMBER, _FLAG, _OBJECT = (str,), (str, list), (int,), (int, float), (bool,), (dict,)
_EXPECTED = {
    _TEXT: "text",
    _TEXTS: "text or a list of texts",
    _WHOLE: "a whole number",
    _NUMBER: "a number",
    _FLAG: "true or false",
    _OBJECT: "an object",
}
# Where float32 makes neither 0 nor infinity of them, nor of what they are applied to.
_RANGES = {"temperature": (0, 100), "top_p": (0.001, 1), "min_p": (0, 1), "repetition_penalty": (0.1, 10)}
_TYPES: dict[str, tuple[type, ...]] = {
    "model": _TEXT,
    "prompt": _TEXTS,
    "max_tokens": _WHOLE,
    "temperature": _NUMBER,
    "top_k": _WHOLE,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "n": _WHOLE,
    "seed": _WHOLE,
    "stop": _TEXTS,
    "stream": _FLAG,
    "stream_options": _OBJECT,
    "logprobs": _WHOLE,
    "user": _TEXT,
}

_MOST_ROWS = 1024


class ApiError(Exception):
    """Why a request is not answered: a status, one line, the field at fault, a word for programs, further headers."""

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
        """In OpenAI's form."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for, and how many may be under way."""

    request_bytes: int = 1 << 18
    max_tokens: int = 2048  # of each text
    choices: int = 16  # texts: prompts times `n`, and no more than can ever find room
    seconds: float = 120.0  # from the request to the end of its last text
    rows: int = 8  # texts that grow at once
    waiting: int = 32  # texts that wait for a row

    def __post_init__(self) -> None:
        for name in ("request_bytes", "max_tokens", "choices", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.rows > _MOST_ROWS:
            raise ValueError(f"rows: expected at most {_MOST_ROWS}, each with memory of its own, got {self.rows}")
        if self.waiting < 0:
            raise ValueError(f"waiting: expected 0 or more, got {self.waiting}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds: expected a positive number, got {self.seconds}")

    @property
    def most_choices(self) -> int:
        return min(self.choices, self.rows + self.waiting)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """`n` texts of each prompt, with the seeds `seed`, `seed` + 1, ...; without a seed it is drawn."""

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
    """The request that `body` makes to the model of this name; defaults are OpenAI's: 16 tokens, temperature 1.

    Raises:
        ApiError: it is no such request, or asks for more than `limits` allow; names the field.
    """
    fields = _read(body)
    if fields.get("model", model) != model:
        message = f"model: there is only {model!r} here, got {fields['model']!r}"
        raise ApiError(message, HTTPStatus.NOT_FOUND, param="model", code="model_not_found")
    prompts = _texts("prompt", fields)
    if not prompts:
        raise ApiError("prompt: expected text or a list of texts; an empty text begins anew", param="prompt")
    stop = _texts("stop", fields)
    if len(stop) > MAX_STOPS or "" in stop:
        raise ApiError(f"stop: expected at most {MAX_STOPS} texts, none of them empty", param="stop")
    n = _whole("n", fields, 1, low=1, high=limits.most_choices)
    if n * len(prompts) > limits.most_choices:
        raise ApiError(
            f"prompt: {len(prompts)} prompts and n = {n} make more than {limits.most_choices} texts", param="n"
        )
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
        max_tokens=_whole("max_tokens", fields, 16, low=1, high=limits.max_tokens),
        sampler=sampler,
        n=n,
        # Room for the seeds of the other texts.
        seed=_whole("seed", fields, secrets.randbelow(2**32), low=0, high=2**63 - 1 - limits.choices),
        stop=stop,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        logprobs=_whole("logprobs", fields, 0, low=0, high=MAX_LOGPROBS) if "logprobs" in fields else None,
    )


def _read(body: bytes) -> dict[str, Any]:
    """The fields that are not null, known by name and of the right type."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    fields = {}
    for name, given in value.items():
        if name in _NEUTRAL:
            if given is not None and given not in _NEUTRAL[name]:
                raise ApiError(f"{name}: not supported here; leave it out", param=name, code="unsupported_parameter")
        elif name not in _TYPES:
            raise ApiError(f"{name}: unknown field; the fields are {', '.join(_TYPES)}", param=name)
        elif given is not None:
            # JSON's true is no number, though Python's is.
            if not isinstance(given, _TYPES[name]) or (isinstance(given, bool) and bool not in _TYPES[name]):
                raise _wrong_type(name, given)
            fields[name] = _number(name, given) if _TYPES[name] is _NUMBER else given
    return fields


def _number(name: str, given: float) -> float:
    low, high = _RANGES[name]
    if not low <= given <= high:
        raise ApiError(f"{name}: expected {low} to {high}, got {_shown(given)}", param=name)
    return float(given)


def _wrong_type(name: str, given: Any) -> ApiError:
    return ApiError(f"{name}: expected {_EXPECTED[_TYPES[name]]}, got {_shown(given)}", param=name)


def _shown(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "..."


def _whole(name: str, fields: dict[str, Any], default: int, *, low: int, high: int) -> int:
    number = fields.get(name, default)
    if not low <= number <= high:
        raise ApiError(f"{name}: expected {low} to {high}, got {_shown(number)}", param=name)
    return number


def _texts(name: str, fields: dict[str, Any]) -> list[str]:
    given = fields.get(name, [])
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise _wrong_type(name, given)
    return texts


def _include_usage(fields: dict[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if options and not stream:
        raise ApiError("stream_options: only with stream: true", param="stream_options")
    if options.keys() - {"include_usage"} or not isinstance(options.get("include_usage", False), bool):
        raise ApiError("stream_options: expected {include_usage: true or false}", param="stream_options")
    return options.get("include_usage", False)
