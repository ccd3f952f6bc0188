"""Serve a trained model over HTTP.

The server answers OpenAI's /v1/completions and has a page at / to try the
model on. Only this machine can reach it unless --host says otherwise.

Example:
  lm serve --port 8080
"""

import argparse
import os
from pathlib import Path

from lm.cli.path import path
from lm.cli.trained_model import add_dtype_argument, add_model_arguments, load_trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_dtype_argument(parser)
    parser.add_argument(
        "--metrics", type=path, default=Path("metrics"), help="folder with train.csv for the page (%(default)s)"
    )
    parser.add_argument(
        "--params", type=path, default=Path("params.yaml"), help="file with the default settings (%(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free one (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="how many texts to generate at once (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=2048, help="maximum length of each text (%(default)s)")
    parser.add_argument(
        "--context-length", type=int, help="maximum length of a prompt and its text together (that of the model)"
    )
    parser.add_argument("--seconds", type=float, default=120, help="time limit for each request (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from lm import config
    from lm.errors import UserError
    from lm.serving.limits import Limits
    from lm.serving.served_model import ServedModel
    from lm.serving.server import open_server, serve

    params = config.load(args.params)
    try:
        limits = Limits(
            rows=args.rows, max_tokens=args.max_tokens, context_length=args.context_length, seconds=args.seconds
        )
    except ValueError as error:
        name, _, problem = str(error).partition(":")
        raise UserError(f"--{name.replace('_', '-')}:{problem}") from error
    model, tokenizer = load_trained(args, params.runtime)
    if limits.context_length and limits.context_length > model.config.context_length:
        raise UserError(
            f"--context-length: expected at most the {model.config.context_length} tokens that the model sees, got "
            f"{limits.context_length}"
        )
    served = ServedModel(
        name=os.fsencode(args.model.resolve().name).decode(errors="backslashreplace"),
        model=model,
        tokenizer=tokenizer,
        defaults=params.sample,
        metrics=args.metrics,
        limits=limits,
    )
    with open_server(args.host, args.port, served) as server:
        serve(server)
