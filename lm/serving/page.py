"""The web page to try the model on: page.html, filled in with what this server runs.

Values are escaped for the place where they are inserted. The page's Content-Security-Policy forbids it to load anything
from elsewhere, and to run any script but its own, which it identifies by a nonce that is new for every response.
"""

import dataclasses
import json
import re
import secrets
from html import escape
from importlib.resources import files
from typing import Any

from lm.serving.completion_request import MAX_LOGPROBS
from lm.serving.curve import loss_curve
from lm.serving.served_model import ServedModel

_SAMPLERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that the page has a control for


class Page:
    """The page of one model. The loss curve is read again for every response, since training may be running."""

    def __init__(self, served: ServedModel) -> None:
        self._template = files("lm.serving").joinpath("page.html").read_text(encoding="utf-8")
        self._curve = served.metrics / "train.csv"
        config, defaults = served.model.config, served.defaults
        context_length = min(served.limits.context_length or config.context_length, config.context_length)
        max_tokens = min(served.limits.max_tokens, context_length)
        settings = {
            "model": served.name,
            "max_tokens": max_tokens,
            "logprobs": MAX_LOGPROBS,
            "defaults": {
                "prompt": defaults.prompts[0],
                **{name: getattr(defaults, name) for name in _SAMPLERS},
                "max_tokens": min(defaults.max_new_tokens, max_tokens),
            },
        }
        facts = {
            "parameters": sum(weight.numel() for weight in served.model.parameters()),
            "vocab_size": served.model.vocab_size,
            **dataclasses.asdict(config),
        }
        self._values = {
            "name": escape(served.name),
            "settings": _json_for_script(settings),
            "facts": "".join(map(_row, facts, facts.values())),
        }

    def render(self) -> tuple[str, str]:
        """Return the HTML of the page and its Content-Security-Policy."""
        nonce = secrets.token_urlsafe(16)
        values = {**self._values, "nonce": nonce, "curve": loss_curve(self._curve)}
        # Replace all placeholders in one pass, so that a value which contains one is not filled in itself.
        html = re.sub(r"\{\{(\w+)\}\}", lambda placeholder: values[placeholder[1]], self._template)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return html, policy


def _json_for_script(value: dict[str, Any]) -> str:
    """Return JSON that cannot end the script element around it."""
    return json.dumps(value).replace("<", "\\u003c")


def _row(name: str, value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:,.15g}" if is_number else str(value).lower()
    return f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
