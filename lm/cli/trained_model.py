"""The options that locate a trained model, and loading it, shared by the verbs that use one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lm.cli.path import path

if TYPE_CHECKING:
    from lm.model.transformer import TransformerLM
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.training.config import RuntimeConfig


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and --tokenizer."""
    parser.add_argument("--model", type=path, default=Path("data/model"), help="folder of the model (%(default)s)")
    parser.add_argument(
        "--tokenizer", type=path, default=Path("data/tokenizer"), help="folder of its tokenizer (%(default)s)"
    )


def load_trained(args: argparse.Namespace, runtime: "RuntimeConfig") -> "tuple[TransformerLM, Tokenizer]":
    """Load the model and its tokenizer; the model is placed on the device of `runtime`.

    Raises:
        UserError: a file is missing or damaged, the tokenizer is not the one that the model was trained with, or the
            device is not available.
    """
    from lm.device import pick_device
    from lm.model.files import load_model
    from lm.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    device = pick_device(runtime.device)
    model = load_model(args.model, tokenizer.hash, runtime.attention_backend)
    return model.to(device), tokenizer
