"""Convert a Llama or Qwen3 model from transformers into this project's format.

A model that the layers of this project cannot represent is refused, and the
message names what does not fit.

Example:
  lm import hf stories --model imported/model --tokenizer imported/tokenizer
"""

import argparse

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    hf = formats.add_parser("hf", help="a folder that transformers wrote")
    hf.add_argument("folder", type=path, metavar="DIR", help="folder to read")
    hf.add_argument("--model", type=path, required=True, help="folder to write the model to; it must be new or empty")
    hf.add_argument("--tokenizer", type=path, required=True, help="folder to write its tokenizer to; new or empty")


def run(args: argparse.Namespace) -> None:
    from lm.export.import_hugging_face import import_hugging_face

    dropped = import_hugging_face(args.folder, args.model, args.tokenizer)
    if dropped:
        print(f"left out {dropped:,} rows of the vocabulary, for which the tokenizer has no tokens")
