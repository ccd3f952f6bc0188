"""Train, encode and decode with this project's tokenizer and with others, side by side.

    python -m bench.tokenizer --data DIR [--quick] [--json FILE]

A result is the median of calls in fresh processes, in which the systems take turns: megabytes (10**6 bytes) of UTF-8
text per second. Imports, construction and a first call on 2 MB of other text are not timed. Then a new tokenizer with
empty caches gets the whole input in memory and returns ids or text in the form that is fastest for it. The number in
parentheses is its second call, on the same input. A system whose call takes more than three seconds is called once.

What is timed is also checked: ids and decoded text must equal those of the first system, tiktoken. Systems break ties
in training in different ways, so there only the size of the vocabulary is checked. A system that fails or differs is
listed below the tables. The texts contain `<|endoftext|>`, which is a special token for every system that encodes. For
systems that train from a file, reading it is timed; the others get documents that are already in memory.

Texts in DIR: `stories` is tinystories_train, kidstories and campfire_stories; `all` is every .txt file; `code` is
code_python and `chinese` is chinese_sanguo. gpt2/ contains GPT-2's vocab.json and merges.txt; the merges `trained` are
learned from `stories` by this project's tokenizer. With --patterns, encoding is also measured with other patterns and
the same merges: `gpt2/llama3` are those of GPT-2 with the pattern of Llama 3. Without --data, generated stories take
the place of all texts.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.common.arguments import add_choices, add_json, make_json_folder, make_parser
from bench.common.tables import OURS, Problem, version_of
from bench.tokenizer.comparison import TASKS, cases_of, compare
from bench.tokenizer.inputs import generated_text, read_texts, write_inputs
from bench.tokenizer.report import report
from bench.tokenizer.systems import SYSTEMS
from lm.atomic import write_json
from lm.errors import UserError, exit_cleanly
from lm.tokenizer.text.patterns import PATTERNS

_GENERATED_BYTES = 20_000_000
_QUICK_BYTES = 8_000_000
_REPEATS = 3


def main() -> None:
    args = parse_arguments()
    make_json_folder(args.json)
    size = _QUICK_BYTES if args.quick else None
    texts = read_texts(args.data, size) if args.data else {"generated": generated_text(1, size or _GENERATED_BYTES)}
    installed = [name for name in args.systems if name == OURS or version_of(name)]
    missing = [Problem(name, "not installed") for name in args.systems if name not in installed]
    with TemporaryDirectory() as folder:
        tokenizers = write_inputs(Path(folder), texts, args.data, args.patterns, args.quick)
        cases = [
            case
            for task in args.tasks
            for case in cases_of(task, list(texts), tokenizers, args.threads, quick=args.quick)
        ]
        rows, failures = compare(Path(folder), cases, installed, 1 if args.quick else _REPEATS)
    print(report(rows, {name: len(text.encode()) for name, text in texts.items()}, missing + failures))
    if args.json:
        write_json(args.json, rows)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.tokenizer", __doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the texts")
    parser.add_argument("--quick", action="store_true", help="one call per result, 8 MB per text, one tokenizer")
    add_choices(parser, "--tasks", TASKS, TASKS)
    add_choices(parser, "--patterns", [name for name in PATTERNS if name != "gpt2"], [])
    add_choices(parser, "--systems", SYSTEMS, list(SYSTEMS))
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="default: 1 2")
    add_json(parser)
    args = parser.parse_args()
    cores = _usable_cores()
    args.threads = args.threads or [1, 2][:cores]
    for threads in args.threads:
        if not 1 <= threads <= cores:
            raise UserError(f"--threads: expected 1 to {cores}, the number of usable cores, got {threads}")
    # tiktoken comes first in SYSTEMS, so its results are the ones that the others must equal.
    args.systems = [name for name in SYSTEMS if name in args.systems]
    return args


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    exit_cleanly(main)
