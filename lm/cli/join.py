"""Join several token folders into one.

This is for a corpus that several machines encoded in shares. All of them must
have used the same tokenizer. The folders are joined in the order given.

Example:
  lm join data/tokens shares/1 shares/2
"""

import argparse

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=path, metavar="OUT", help="folder to write, such as data/tokens")
    parser.add_argument("folders", type=path, nargs="+", metavar="FOLDER", help="output of the stage encode_memmap")


def run(args: argparse.Namespace) -> None:
    from lm.tokens import join_tokens

    for split, facts in join_tokens(args.folders, args.out)["splits"].items():
        print(f"{split}: {facts['count']:,} tokens in {facts['documents']:,} documents")
