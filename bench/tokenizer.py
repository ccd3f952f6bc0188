"""Train, encode and decode with this project's tokenizer and with others, side by side.

    python bench/tokenizer.py --data DIR [--quick] [--json FILE]

A figure is the median of calls in fresh processes, in which the systems take turns: megabytes (10**6 bytes) of UTF-8
text a second. Not timed are imports, construction and a first go at 2 MB of other text. Then a new tokenizer, its
caches cold, gets the whole input in memory and gives ids or text in the form that costs it least; in brackets stands
its second call, on the same input. measure.py does this; systems.py says how each system is used. A system whose call
takes over three seconds is called once.

What was timed is also checked: ids and decoded text must equal those of the first system, tiktoken. Of training, in
which each system breaks ties in its own way, it is the size of the vocabulary. A system that fails or differs is named
below the tables. The texts keep their `<|endoftext|>`, the special token of every system that encodes. A system that
trains from a file is timed with reading it; the others get documents that are in memory already.

Texts in DIR: `stories` is tinystories_train, kidstories and campfire_stories; `all` is every .txt file; `code` is
code_python, `chinese` is chinese_sanguo. gpt2/ holds vocab.json and merges.txt of GPT-2; the merges `trained` are what
this project's tokenizer learns on `stories`. Without --data, text of the story grammar stands for all of them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from systems import SYSTEMS, write_files
from tables import Problem, report
from tqdm import tqdm

from lm.atomic import make_folder, write_json
from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.errors import UserError, exit_cleanly
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

TASKS = ["train", "encode", "encode_documents", "decode"]

_FILES = {
    "stories": ["tinystories_train.txt", "kidstories.txt", "campfire_stories.txt"],
    "all": ["*.txt"],
    "code": ["code_python.txt"],
    "chinese": ["chinese_sanguo.txt"],
}
_TEXTS = {"train": ["stories", "all"], "decode": ["stories", "chinese"]}  # a task that is not here takes all
_VOCAB_SIZES = [10_000, 32_000]
_GENERATED_VOCAB_SIZE = 2_000  # the grammar has no more words to learn

_GENERATED_BYTES = 20_000_000
_QUICK_BYTES = 8_000_000
_WARM_UP_BYTES = 2_000_000
_DECODED_TOKENS = 1_000_000

_REPEATS = 3
_LONG = 3.0  # seconds
_TIMEOUT = 900.0  # seconds

_MEASURE = Path(__file__).with_name("measure.py")


@dataclass(frozen=True)
class Cell:
    """What the systems are compared on: a row of a table. `merges` is gpt2 or trained, in training empty."""

    task: str
    text: str
    merges: str
    vocab_size: int
    threads: int

    def __str__(self) -> str:
        return f"{self.task}, {self.text}, vocab_size {self.vocab_size}, threads {self.threads}"


class NotMeasured(Exception):
    """Why a system has no figure, in a few words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of real text")
    parser.add_argument("--quick", action="store_true", help="one call a figure, 8 MB of a text, the first merges only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, a row for each")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=", ".join(SYSTEMS)
    )
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="default: 1 2")
    args = parser.parse_args()
    cores = _usable_cores()
    args.threads = args.threads or [1, 2][:cores]
    for threads in args.threads:
        if not 1 <= threads <= cores:
            raise UserError(f"--threads: expected 1 to {cores}, the cores that can be used, got {threads}")
    if args.json:
        make_folder(args.json.parent)

    size = _QUICK_BYTES if args.quick else None
    texts = read_texts(args.data, size) if args.data else {"generated": generated_text(1, size or _GENERATED_BYTES)}
    versions, missing = installed([name for name in SYSTEMS if name in args.systems])
    with TemporaryDirectory() as folder:
        tokenizers = write_inputs(Path(folder), texts, args.data, args.quick)
        cells = [cell for task in args.tasks for cell in plan(task, list(texts), tokenizers, args.threads, args.quick)]
        rows, failures = run(Path(folder), cells, list(versions), 1 if args.quick else _REPEATS)
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    print(report(rows, sizes, versions, missing + failures))
    if args.json:
        write_json(args.json, rows)


def read_texts(folder: Path, size: int | None) -> dict[str, str]:
    """The texts by name, each shortened to about `size` bytes by taking less of every file.

    Raises:
        UserError: a file is missing or not UTF-8.
    """
    texts = {}
    for name, patterns in _FILES.items():
        paths = [path for pattern in patterns for path in sorted(folder.glob(pattern)) or [folder / pattern]]
        try:
            files = [path.read_bytes().decode() for path in paths]
        except OSError as error:
            raise UserError(f"--data: {error.filename}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--data: {folder}: the text {name} is not UTF-8 ({error})") from error
        share = min(1.0, size / sum(len(file.encode()) for file in files)) if size else 1.0
        texts[name] = "".join([file[: round(share * len(file))] for file in files])
    return texts


def generated_text(seed: int, size: int) -> str:
    """Text of the story grammar, at least `size` bytes."""

    def documents() -> Iterator[str]:
        length = 0
        for story in stories(seed):
            if length >= size:
                return
            length += len(story.text)
            yield story.text + END_OF_TEXT

    return "".join(documents())


def installed(names: list[str]) -> tuple[dict[str, str], list[Problem]]:
    """The versions of the systems that are here, and a problem for each of the others."""
    versions: dict[str, str] = {}
    missing: list[Problem] = []
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(Problem(name, "not installed"))
    return versions, missing


def write_inputs(folder: Path, texts: dict[str, str], data: Path | None, quick: bool) -> dict[str, int]:
    """Write what the measuring processes read, and return the merges' names with their vocabulary sizes.

    That is TEXT.txt, warm_up.txt, a folder MERGES of a tokenizer's files, and TEXT.npy, warm_up.npy, ids, within.
    """
    texts = texts | {"warm_up": generated_text(0, _WARM_UP_BYTES)}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    tokenizers = {}
    if data:
        files = data / "gpt2" / "vocab.json", data / "gpt2" / "merges.txt"
        tokenizers["gpt2"] = Tokenizer.from_files(*files, [END_OF_TEXT])
    if not (data and quick):
        text, size = ("stories", _VOCAB_SIZES[0]) if data else ("generated", _GENERATED_VOCAB_SIZE)
        tokenizers["trained"] = Tokenizer(*train_bpe(folder / f"{text}.txt", size, [END_OF_TEXT]), [END_OF_TEXT])
    for merges, tokenizer in tokenizers.items():
        write_files(tokenizer, folder / merges)
        for name in {"warm_up", *_TEXTS["decode"], "generated"} & texts.keys():
            ids = list(islice(tokenizer.encode_iterable([texts[name]]), _DECODED_TOKENS))
            while tokenizer.decode(ids[-4:]).endswith("\ufffd"):
                ids.pop()  # of a character that is not whole
            np.save(folder / merges / f"{name}.npy", np.array(ids, dtype=np.uint32))
    return {merges: tokenizer.vocab_size for merges, tokenizer in tokenizers.items()}


def plan(task: str, texts: list[str], tokenizers: dict[str, int], threads: list[int], quick: bool) -> list[Cell]:
    if "generated" not in texts:
        texts = _TEXTS.get(task, texts)
    if task == "train":
        sizes = [_GENERATED_VOCAB_SIZE] if "generated" in texts else _VOCAB_SIZES[: 1 if quick else None]
        vocabularies = [("", size) for size in sizes]
    else:
        vocabularies = list(tokenizers.items())
    if task == "decode":
        threads = threads[:1]  # no system decodes one text on more
    return [Cell(task, text, *vocabulary, n) for text in texts for vocabulary in vocabularies for n in threads]


def run(
    folder: Path, cells: list[Cell], systems: list[str], repeats: int
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Measure every system on every cell that it can do: a row for each that has a figure, a problem for the others."""
    rows, problems = [], []
    contenders = {cell: [name for name in systems if hasattr(SYSTEMS[name], cell.task)] for cell in cells}
    with tqdm(total=repeats * sum(map(len, contenders.values())), unit="call") as bar:
        for cell, names in contenders.items():
            expected = cell.vocab_size if cell.task == "train" else None
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for name in names * repeats:
                bar.set_postfix_str(f"{cell.task} {cell.text} {name}")
                if name in runs and not (runs[name] and runs[name][0]["seconds"] > _LONG):
                    try:
                        run = measure(folder, cell, name)
                        expected = expected or run["check"]
                        if run["check"] != expected:
                            raise NotMeasured(_difference(cell.task, run["check"], next(iter(runs))))
                        runs[name].append(run)
                    except NotMeasured as error:
                        problems.append(Problem(name, str(error), str(cell)))
                        del runs[name]
                bar.update()
            rows += [_row(cell, name, of_system) for name, of_system in runs.items()]
    return rows, problems


def measure(folder: Path, cell: Cell, system: str) -> dict[str, Any]:
    """What measure.py prints; a NotMeasured says why it printed nothing."""
    job = {"system": system, "task": cell.task, "threads": cell.threads, "vocab_size": cell.vocab_size}
    job["folder"] = str(folder / cell.merges)
    inputs, suffix = (folder / cell.merges, ".npy") if cell.task == "decode" else (folder, ".txt")
    job |= {"input": str(inputs / (cell.text + suffix)), "warm_up": str(inputs / ("warm_up" + suffix))}
    try:
        done = subprocess.run(
            [sys.executable, _MEASURE, json.dumps(job)], check=False, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"not done after {_TIMEOUT:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotMeasured(f"failed, exit status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])  # libraries print too


def _difference(task: str, check: Any, first: str) -> str:
    if task == "train":
        return f"made a vocabulary of {check}"
    return f"its text differs from that of {first}" if task == "decode" else f"its ids differ from those of {first}"


def _row(cell: Cell, system: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    row = asdict(cell) | {"system": system, "calls": len(runs), "peak_mb": median(run["peak_mb"] for run in runs)}
    for name, seconds in {"mb_per_second": "seconds", "second_mb_per_second": "second_seconds"}.items():
        speeds = [run["bytes"] / run[seconds] / 1e6 for run in runs if seconds in run]  # a long call has no second
        if speeds:
            row[name] = median(speeds)
    return row


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    exit_cleanly(main)
