"""One measurement of `bench.tokenizer.scaling` in a fresh process: reads and prints a JSON object.

Not timed: imports, reading the text (except for `encode_file` and `count`, which read a file), building the tokenizer,
and a first call on other text. The process then waits until all that run at the same time have come this far.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.tokenizer.measure import DOCUMENT_LENGTH
from lm.corpus.config import END_OF_TEXT
from lm.tokenizer.encoding import fast as fast_encoding
from lm.tokenizer.text import fast as fast_text
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.fast.text_file import FileSource
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training import fast as fast_training
from lm.tokenizer.training.fast.counting import count_pre_tokens

TASKS = ["encode", "encode_documents", "encode_file", "count"]

# What one thread does while others work; the other kernels build tables, or run under a lock: one thread at a time
# looks for the next place where the text can be split, and adds its counts to those of the text.
_PARALLEL_KERNELS = ["encode", "copy_cache", "read_strings", "count_pre_tokens"]
_COPIED_BYTES = 1 << 28


def main() -> None:
    job = json.loads(sys.argv[1])
    print(json.dumps(copy(job) if job["task"] == "copy" else measure(job)))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Do a task on one part of the text and return `bytes`, `seconds`, and `parallel_seconds`.

    `parallel_seconds` is the sum, over all threads, of the time in which the GIL was not needed.
    """
    path = part_of(job)
    text, warm_up = path.read_bytes().decode(), Path(job["warm_up"])
    prepare(job, warm_up.read_bytes().decode(), warm_up)()
    call = prepare(job, text, path)
    clock = Clock()
    for library in (fast_text.library, fast_encoding.library, fast_training.library):
        clock.watch(library.load(), _PARALLEL_KERNELS)
    clock.watch(FileSource, ["read"])
    meet(job)
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return {"bytes": path.stat().st_size, "seconds": seconds, "parallel_seconds": clock.seconds}


def prepare(job: dict[str, Any], text: str, path: Path) -> Callable[[], Any]:
    """Return a function that does the task, with a new tokenizer."""
    threads = job["threads"]
    folder = Path(job["folder"])
    tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", [END_OF_TEXT])
    documents = [text[start : start + DOCUMENT_LENGTH] for start in range(0, len(text), DOCUMENT_LENGTH)]

    def count() -> Any:
        with FileSource.open(path, "counting") as source:
            return count_pre_tokens(source, automaton_tables("gpt2"), [END_OF_TEXT], threads)

    return {
        "encode": lambda: tokenizer.encode_array(text, num_threads=threads),
        "encode_documents": lambda: tokenizer.encode_batch(documents, num_threads=threads),
        "encode_file": lambda: list(tokenizer.encode_file(path, threads)),
        "count": count,
    }[job["task"]]


def part_of(job: dict[str, Any]) -> Path:
    """Write the part of the text that this process works on, from one end of a line to another, to a file."""
    data, part, num_parts = Path(job["input"]).read_bytes(), job["part"], job["num_parts"]
    bounds = [data.rfind(b"\n", 0, len(data) * number // num_parts) + 1 for number in (part, part + 1)]
    if part == num_parts - 1:
        bounds[1] = len(data)
    path = Path(job["meeting"]) / f"text-{part}"
    path.write_bytes(data[slice(*bounds)])
    return path


def copy(job: dict[str, Any]) -> dict[str, Any]:
    """Copy memory; return the MB that are read and written per second."""
    source, target = np.ones(_COPIED_BYTES // 8), np.ones(_COPIED_BYTES // 8)
    meet(job)
    start = time.perf_counter()
    np.copyto(target, source)
    return {"mb_per_second": 2 * _COPIED_BYTES / (time.perf_counter() - start) / 1e6}


def meet(job: dict[str, Any]) -> None:
    """Wait for all processes that run at the same time."""
    folder = Path(job["meeting"])
    (folder / f"ready-{job['part']}").touch()
    while len(list(folder.glob("ready-*"))) < job["num_parts"]:
        time.sleep(0.0001)


class Clock:
    """Adds up the time that all threads spend in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: Any, names: list[str]) -> None:
        """Measure those of the functions that `owner` has."""
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return timed


if __name__ == "__main__":
    main()
