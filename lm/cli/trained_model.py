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


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Add --dtype, for verbs that generate text."""
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "int8"],
        default="float32",
        help="type of the weights; int8 needs a CPU (%(default)s)",
    )


def load_trained(args: argparse.Namespace, runtime: "RuntimeConfig") -> "tuple[TransformerLM, Tokenizer]":
    """Load the model and its tokenizer; the model is placed on the device of `runtime`, with weights of `args.dtype`.

    Raises:
        UserError: a file is missing or damaged, the tokenizer is not the one that the model was trained with, or the
            device is not available or cannot compute with that dtype.
    """
    import torch

    from lm.device import pick_device
    from lm.generation.quantized import to_int8
    from lm.model.files import load_model
    from lm.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    device = pick_device(runtime.device)
    model = load_model(args.model, tokenizer.hash, runtime.attention_backend)
    if args.dtype == "int8":
        return to_int8(model.to(device)), tokenizer
    return model.to(device, getattr(torch, args.dtype)), tokenizer
