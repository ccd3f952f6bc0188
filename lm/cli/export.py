"""Write a trained model in the format of transformers or llama.cpp.

A model that the format cannot represent is refused, and the message names the
parameter that does not fit.

Examples:
  lm export hf stories --raw data/raw --metrics metrics/train.json
  lm export gguf stories.gguf --type f32
"""

import argparse

from lm.cli.path import path
from lm.cli.trained_model import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(required=True, dest="format", metavar="FORMAT")

    hf = formats.add_parser("hf", help="a folder that transformers loads")
    hf.add_argument("out", type=path, metavar="DIR", help="folder to write; it must be new or empty")
    hf.add_argument("--raw", type=path, help="folder of the training text, such as data/raw, for the model card")
    hf.add_argument("--metrics", type=path, help="file of metrics, such as metrics/train.json, for the model card")
    add_model_arguments(hf)

    gguf = formats.add_parser("gguf", help="a file that llama.cpp runs")
    gguf.add_argument("out", type=path, metavar="FILE", help="file to write; it must not exist")
    gguf.add_argument(
        "--type", choices=["f32", "f16", "bf16", "q8_0"], default="f16", help="type of the weights (%(default)s)"
    )
    add_model_arguments(gguf)


def run(args: argparse.Namespace) -> None:
    if args.format == "hf":
        from lm.export.hugging_face import export_hugging_face

        export_hugging_face(args.model, args.tokenizer, args.out, args.raw, args.metrics)
    else:
        from lm.export.gguf import export_gguf

        export_gguf(args.model, args.tokenizer, args.out, args.type)
