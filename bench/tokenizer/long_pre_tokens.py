"""How long one long pre-token takes: in time proportional to its length, or to its length times the logarithm of it.

    python -m bench.tokenizer.long_pre_tokens [--megabytes 0.25 0.5 1]

A pre-token of these texts has up to a megabyte, where a sentence has a dozen bytes. The cells are milliseconds per
megabyte, so where time is proportional to the length, the numbers of a row are equal. A program that searches all pairs
after each merge would need a thousand times as long for a thousand times the text, per megabyte.

- encode: the kernels; plain: the same in Python;
- train: counting the pre-tokens and learning 1,000 merges, with kernels.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.common.arguments import make_parser
from bench.common.tables import machine
from bench.tokenizer.inputs import GENERATED_VOCAB_SIZE, generated_text
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError, exit_cleanly
from lm.tokenizer.text.fast.strings import StringSource
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe
from lm.tokenizer.training.fast.counting import count_pre_tokens
from lm.tokenizer.training.fast.merges import learn_merges

_NUM_MERGES = 1000
_TRAINING_BYTES = 2_000_000
_REPEATS = 3
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS: dict[str, Callable[[int], str]] = {
    "one letter": lambda length: "a" * length,
    "random letters": lambda length: "".join(random.Random(1).choices(_LETTERS, k=length)),
    "spaces": lambda length: " " * length,
    "random digits": lambda length: "".join(random.Random(1).choices("0123456789", k=length)),
    "random marks": lambda length: "".join(random.Random(1).choices("!?.,;:-", k=length)),
    "Chinese characters": lambda length: "".join(random.Random(1).choices("天地玄黄宇宙洪荒", k=length // 3)),
}


def main() -> None:
    args = parse_arguments()
    tokenizer = make_tokenizer()
    paths: dict[str, Callable[[str], object]] = {
        "encode": tokenizer.encode_array,
        "plain": lambda text: list(tokenizer._codec.plain_encode([text], True)),
        "train": lambda text: learn_merges(
            count_pre_tokens(StringSource(text), automaton_tables("gpt2"), [], 1), _NUM_MERGES
        ),
    }
    print(f"{machine()}; milliseconds per megabyte.\n")
    sizes = [f"{size:g} MB" for size in args.megabytes]
    print(f"| text | path | {' | '.join(sizes)} |", "| --- " * 2 + "| ---: " * len(sizes) + "|", sep="\n")
    for name, make_text in TEXTS.items():
        for path, call in paths.items():
            cells = [f"{milliseconds(call, make_text(round(size * 1e6))) / size:.0f}" for size in args.megabytes]
            print(f"| {name} | {path} | {' | '.join(cells)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.tokenizer.long_pre_tokens", __doc__)
    parser.add_argument("--megabytes", nargs="+", type=float, metavar="N", default=[0.25, 0.5, 1.0])
    args = parser.parse_args()
    for size in args.megabytes:
        if not size > 0:
            raise UserError(f"--megabytes: expected more than 0, got {size:g}")
    return args


def make_tokenizer() -> Tokenizer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(generated_text(1, _TRAINING_BYTES), encoding="utf-8")
        return Tokenizer(*train_bpe(path, GENERATED_VOCAB_SIZE, [END_OF_TEXT]), [END_OF_TEXT])


def milliseconds(call: Callable[[str], object], text: str) -> float:
    """Return the shortest of several times of a call."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call(text)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


if __name__ == "__main__":
    exit_cleanly(main)
