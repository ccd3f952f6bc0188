"""The page to try the model on: page.html, filled in with what this server runs.

What is filled in is escaped for its place, and the page may load nothing from elsewhere and run no script but its own:
the nonce of its Content-Security-Policy is new each time.
"""

import dataclasses
import json
import re
import secrets
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lm.generation.config import SampleConfig
from lm.model.transformer import TransformerLM
from lm.serving.completion_request import MAX_LOGPROBS, Limits
from lm.serving.curve import loss_curve


class Page:
    """Made once; the loss curve is read anew for every visit, since a training may be under way."""

    def __init__(self, name: str, model: TransformerLM, start: SampleConfig, limits: Limits, metrics: Path) -> None:
        """`start` is what the page's controls show at first; `metrics` is the folder that may hold train.csv."""
        self._template = files("lm.serving").joinpath("page.html").read_text(encoding="utf-8")
        self._curve = metrics / "train.csv"
        max_tokens = min(limits.max_tokens, model.config.context_length)
        settings = {
            "model": name,
            "max_tokens": max_tokens,
            "logprobs": MAX_LOGPROBS,
            "start": {
                "prompt": start.prompts[0],
                **dataclasses.asdict(start.sampler),
                "max_tokens": min(start.max_new_tokens, max_tokens),
            },
        }
        num_parameters = sum(weight.numel() for weight in model.parameters())
        facts = {"parameters": num_parameters, "vocab_size": model.vocab_size, **dataclasses.asdict(model.config)}
        self._fixed = {
            "name": escape(name),
            "settings": _for_script(settings),
            "facts": "".join(map(_row, facts, facts.values())),
        }

    def render(self) -> tuple[str, str]:
        """The page and its Content-Security-Policy."""
        nonce = secrets.token_urlsafe(16)
        parts = {**self._fixed, "nonce": nonce, "curve": loss_curve(self._curve)}
        # In one pass: a value that looks like a place to be filled in stays as it is.
        html = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], self._template)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return html, policy


def _for_script(value: dict[str, Any]) -> str:
    """JSON that nothing can end a script element in."""
    return json.dumps(value).replace("<", "\\u003c")


def _row(name: str, value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    shown = f"{value:,.15g}" if is_number else str(value).lower()
    return f"<div><dt>{escape(name)}</dt><dd>{escape(shown)}</dd></div>"
