"""The web page to try the model on: the template page.html, filled in with what this server runs.

Jinja2 escapes the values for the place where they are inserted. The page's Content-Security-Policy forbids it to load
anything from elsewhere, and to run any script but its own, which it identifies by a nonce that is new for every
response.
"""

import dataclasses
import secrets
from contextlib import suppress
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lm.errors import UserError
from lm.model.cost import parameters
from lm.report.curve import loss_curve
from lm.serving.completion_request import MAX_LOGPROBS
from lm.serving.served_model import ServedModel

_SAMPLERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that the page has a control for


class Page:
    """The page of one model. The loss curve is drawn again when its file has changed, since training may be running."""

    def __init__(self, served: ServedModel) -> None:
        # The style sheet is that of the report.
        loader = ChoiceLoader([PackageLoader("lm.serving", package_path=""), PackageLoader("lm.report")])
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        environment.filters["readable"] = _readable
        self._template = environment.get_template("page.html")
        self._curve = served.metrics / "train.csv"
        self._drawn: tuple[tuple[int, int], str] | None = None  # the version of the file, and its curve
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
            "parameters": sum(parameters(config, served.model.vocab_size).values()),
            "vocab_size": served.model.vocab_size,
            **dataclasses.asdict(config),
        }
        self._values = {"name": served.name, "settings": settings, "facts": facts}

    def render(self) -> tuple[str, str]:
        """Return the HTML of the page and its Content-Security-Policy."""
        nonce = secrets.token_urlsafe(16)
        html = self._template.render(**self._values, nonce=nonce, curve=self._loss_curve())
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return html, policy

    def _loss_curve(self) -> str:
        """The curve, or why there is none. Drawing takes a tenth of a second."""
        version = None
        with suppress(OSError, ValueError):  # which reading explains better
            status = self._curve.stat()
            version = status.st_mtime_ns, status.st_size
        if self._drawn is not None and self._drawn[0] == version:
            return self._drawn[1]
        try:
            curve = Markup(loss_curve(self._curve))
        except UserError as error:
            return f"no loss curve: {error}"
        if version is not None:
            self._drawn = version, curve
        return curve


def _readable(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,.15g}" if is_number else str(value).lower()
