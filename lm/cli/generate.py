"""Continue a prompt with a trained model.

The text is printed as it is generated. Settings that are not given come from
the section `sample` of params.yaml.

Examples:
  lm generate "Once upon a time" --temperature 0.5 --num-samples 3
  lm generate --interactive
  lm generate -- "- a text that begins with a hyphen"
"""

import argparse
import dataclasses
from pathlib import Path

from lm.cli.path import path
from lm.cli.trained_model import add_dtype_argument, add_model_arguments, load_trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="text to continue (default: the first of sample.prompts)")
    add_model_arguments(parser)
    add_dtype_argument(parser)
    parser.add_argument(
        "--params", type=path, default=Path("params.yaml"), help="file with the default settings (%(default)s)"
    )
    parser.add_argument("--num-samples", type=int, help="how many texts to generate")
    parser.add_argument("--max-new-tokens", type=int, help="maximum length of each text")
    parser.add_argument("--temperature", type=float, help="0 always takes the most likely token")
    parser.add_argument("--top-k", type=int, help="0 keeps all tokens")
    parser.add_argument("--top-p", type=float, help="1 keeps all tokens")
    parser.add_argument("--min-p", type=float, help="0 keeps all tokens")
    parser.add_argument("--repetition-penalty", type=float, help="1 leaves the probabilities unchanged")
    parser.add_argument("--seed", type=int, help="seed of the first sample; each further sample adds 1")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end a sample at this text; may be repeated"
    )
    parser.add_argument(
        "--past-context",
        choices=["slide", "stop"],
        default="slide",
        help="when the text outgrows the context window: slide drops its beginning and reads the rest again, "
        "stop ends it (%(default)s)",
    )
    parser.add_argument(
        "--interactive", action="store_true", help="keep the model loaded and ask for prompts and settings"
    )


def run(args: argparse.Namespace) -> None:
    from lm import config
    from lm.errors import UserError
    from lm.generation.batch import Batch
    from lm.generation.numba_decoder import fastest_decoder
    from lm.generation.terminal import Terminal

    params = config.load(args.params)
    names = [field.name for field in dataclasses.fields(params.sample)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    try:
        settings = dataclasses.replace(params.sample, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    if "" in args.stop:
        raise UserError("--stop: expected some text, got ''")
    prompt = settings.prompts[0] if args.prompt is None else args.prompt
    model, tokenizer = load_trained(args, params.runtime)
    context_length = model.config.context_length
    if not args.interactive:  # room for this text only
        context_length = min(context_length, len(tokenizer.encode_prompt(prompt)) + settings.max_new_tokens)
    terminal = Terminal(
        batch=Batch(fastest_decoder(model, num_rows=1, context_length=context_length)),
        tokenizer=tokenizer,
        context_length=model.config.context_length,
        stop=args.stop,
        slide=args.past_context == "slide",
    )
    if args.prompt is not None or not args.interactive:
        terminal.write(prompt, settings)
    if args.interactive:
        terminal.converse(settings)
