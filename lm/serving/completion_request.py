"""Parse and validate the body of a request to /v1/completions.

    {"model": "model", "prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.7, "top_k": 40, "seed": 1}

The fields are those of OpenAI's API (https://platform.openai.com/docs/api-reference/completions), and some that vLLM
and llama.cpp have too: the samplers `top_k`, `min_p` and `repetition_penalty`, and `add_special_tokens`. Other fields
of these servers are ignored if they have no effect on the text, or a value that has none. All other fields that are
unknown or unsupported, of a wrong type or out of range are errors: a request never gets another text than it asks for.
A field that is null counts as omitted.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from lm.errors import UserError, quote
from lm.generation.config import SamplerConfig
from lm.serving.limits import Limits

MAX_STOPS = 4
MAX_LOGPROBS = 5

# Fields of OpenAI's API, vLLM and llama.cpp that would change the text but are not supported here, with the value that
# has no effect.
_UNSUPPORTED: dict[str, Any] = {
    "suffix": "",
    # vLLM
    "allowed_token_ids": [],
    "bad_words": [],
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "length_penalty": 1,
    "min_tokens": 0,
    "prompt_logprobs": None,
    "response_format": {"type": "text"},
    "return_tokens_as_token_ids": False,
    "skip_special_tokens": True,
    "stop_token_ids": [],
    "use_beam_search": False,
    # llama.cpp
    "dry_multiplier": 0,
    "dynatemp_range": 0,
    "grammar": "",
    "min_keep": 0,
    "mirostat": 0,
    "n_probs": 0,
    "repeat_penalty": 1,
    "top_n_sigma": -1,
    "typical_p": 1,
    "xtc_probability": 0,
}

# Fields of these APIs that never change the text, or only together with one of the fields above.
_IGNORED = {
    "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user",
    "cache_salt", "priority", "request_id", "spaces_between_special_tokens",
    "cache_prompt", "dynatemp_exponent", "id_slot", "mirostat_eta", "mirostat_tau", "timings_per_token",
    "xtc_threshold",
}  # fmt: skip


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
_RANGES = {
    "temperature": (0, 100),
    "top_p": (0.001, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.1, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logit_bias": (-100, 100),
}
_TYPES = {
    "model": _STRING,
    "prompt": _STRINGS,
    "max_tokens": _INTEGER,
    "temperature": _NUMBER,
    "top_k": _INTEGER,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "logit_bias": _OBJECT,
    "n": _INTEGER,
    "best_of": _INTEGER,
    "seed": _INTEGER,
    "stop": _STRINGS,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "logprobs": _INTEGER,
    "echo": _BOOLEAN,
    "add_special_tokens": _BOOLEAN,
}


class ApiError(UserError):
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
class CompletionRequest:
    """A request for the `n` most likely of `best_of` texts per prompt, generated with the seeds `seed`, `seed` + 1, ...

    A prompt is text or token ids. Text follows the end-of-text token if `add_special_tokens`. With `echo`, each text
    and its log-probabilities begin with those of the prompt, and `max_tokens` may be 0.
    """

    prompts: list[str] | list[list[int]]
    add_special_tokens: bool
    echo: bool
    max_tokens: int
    sampler: SamplerConfig
    n: int
    best_of: int
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
        message = f"model: expected {model!r}, got {quote(fields['model'])}; this server has only one model"
        raise ApiError(message, HTTPStatus.NOT_FOUND, param="model", code="model_not_found")
    prompts = _prompts(fields)
    stop = _strings("stop", fields)
    if len(stop) > MAX_STOPS or "" in stop:
        raise ApiError(f"stop: expected at most {MAX_STOPS} strings, none of them empty", param="stop")
    n = _integer("n", fields, 1, low=1, high=limits.max_choices)
    best_of = _integer("best_of", fields, n, low=n, high=limits.max_choices)
    if best_of * len(prompts) > limits.max_choices:
        name = "best_of" if best_of > n else "n"
        message = f"{name}: {best_of} texts for each of {len(prompts)} prompts are more than the {limits.max_choices}"
        raise ApiError(f"{message} allowed", param=name)
    stream, echo = fields.get("stream", False), fields.get("echo", False)
    if stream and best_of > n:
        raise ApiError("best_of: more than n is not possible with stream: true", param="best_of")
    return CompletionRequest(
        prompts=prompts,
        add_special_tokens=fields.get("add_special_tokens", True),
        echo=echo,
        max_tokens=_integer("max_tokens", fields, 16, low=0 if echo else 1, high=limits.max_tokens),
        sampler=_sampler(fields),
        n=n,
        best_of=best_of,
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
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {_json_mistake(error)}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    fields = {}
    for name, given in value.items():
        if name in _IGNORED:
            continue
        if name in _UNSUPPORTED:
            if given is not None and given != _UNSUPPORTED[name]:
                raise ApiError(f"{name}: not supported; leave it out", param=name, code="unsupported_parameter")
        elif name not in _TYPES:
            raise ApiError(f"{name}: unknown field; the fields are {', '.join(_TYPES)}", param=name)
        elif given is not None:
            if not _TYPES[name].includes(given):
                raise _wrong_type(name, given)
            fields[name] = _number(name, given) if _TYPES[name] is _NUMBER else given
    return fields


def _json_mistake(error: ValueError | RecursionError) -> str:
    match error:
        case json.JSONDecodeError():
            return str(error)
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start}"
        case RecursionError():
            return "nested too deeply"
        case _:
            return "a number has thousands of digits"


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


def _sampler(fields: dict[str, Any]) -> SamplerConfig:
    top_k = fields.get("top_k", 0)
    try:
        return SamplerConfig(
            temperature=fields.get("temperature", 1.0),
            top_k=0 if top_k == -1 else top_k,  # other servers keep all tokens at -1
            top_p=fields.get("top_p", 1.0),
            min_p=fields.get("min_p", 0.0),
            repetition_penalty=fields.get("repetition_penalty", 1.0),
            presence_penalty=fields.get("presence_penalty", 0.0),
            frequency_penalty=fields.get("frequency_penalty", 0.0),
            logit_bias=_logit_bias(fields.get("logit_bias", {})),
        )
    except ValueError as error:
        raise ApiError(str(error), param=str(error).partition(":")[0]) from error


def _logit_bias(given: dict[str, Any]) -> dict[int, float]:
    """Return the bias by token id. In JSON, the ids are strings."""
    for token_id, bias in given.items():
        if not (token_id.isascii() and token_id.isdecimal() and len(token_id) < 10 and _NUMBER.includes(bias)):
            message = f"expected token ids with numbers, got {_abbreviate({token_id: bias})}"
            raise ApiError(f"logit_bias: {message}", param="logit_bias")
    return {int(token_id): _number("logit_bias", bias) for token_id, bias in given.items()}


def _prompts(fields: dict[str, Any]) -> list[str] | list[list[int]]:
    given = fields.get("prompt", [])
    if not given and given != "":
        raise ApiError("prompt: expected a string or an array of strings, which may be empty", param="prompt")
    prompts = given if isinstance(given, list) and not _INTEGER.includes(given[0]) else [given]
    are_texts = all(isinstance(prompt, str) for prompt in prompts)
    if not are_texts and not all(map(_are_token_ids, prompts)):
        message = f"{_wrong_type('prompt', given)}; token ids are one or several arrays of integers"
        raise ApiError(message, param="prompt")
    if [] in prompts:
        raise ApiError("prompt: expected at least one token id, got []", param="prompt")
    return prompts


def _are_token_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(map(_INTEGER.includes, prompt))


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
