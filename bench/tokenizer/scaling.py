"""How the speed of our tokenizer grows with the number of threads, beside a model that predicts it for more of them.

    python -m bench.tokenizer.scaling --data DIR [--threads 1 2] [--json FILE]

For each task and text, the tables have:

- MB/s: the speed of one thread, in the first call of a new tokenizer;
- serial: the share of that time in which no other thread could work: Python, and building tables. The rest is spent in
  kernels and in reading the file, both without the GIL;
- threads N: the speed of N threads divided by that of one;
- processes N: the same for N processes that share nothing and encode or count one N-th of the text each, which is what
  the machine allows: its cores share caches, memory, and the turbo of the processor;
- predicted N: Amdahl's law with the serial share, 1 / (serial + (1 - serial) / N), but at most what the memory allows:
  the bandwidth of copying in all cores at the same time, divided by the bytes that each byte of text moves.

A result is the median of --repeats measurements in fresh processes, which take turns. `count` is the part of training
that uses threads: counting the pre-tokens of a file.
"""

import argparse
import os
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench.common.arguments import add_choices, add_json, check_positive, make_json_folder, make_parser
from bench.common.jobs import start_job
from bench.common.tables import machine
from bench.tokenizer.inputs import generated_text, read_texts, write_inputs
from bench.tokenizer.scaling_job import TASKS
from lm.atomic import write_json
from lm.errors import exit_cleanly

_PREDICTED = [2, 4, 8, 16]
_TIMEOUT = 300.0  # seconds
_GENERATED_BYTES = 20_000_000
# Text is read, written as UTF-8 and read again; for every fourth byte an id of 4 bytes is written, read, and copied.
_BYTES_MOVED = 3 + (4 + 4 + 2) / 4


def main() -> None:
    args = parse_arguments()
    make_json_folder(args.json)
    size = args.megabytes * 1_000_000 if args.megabytes else None
    texts = read_texts(args.data, size) if args.data else {"generated": generated_text(1, size or _GENERATED_BYTES)}
    texts = {name: text for name, text in texts.items() if name in ("generated", "stories", "all")}
    with TemporaryDirectory() as folder:
        merges = next(iter(write_inputs(Path(folder), texts, args.data, ["gpt2"], quick=True)))
        rows = [
            row
            for task in args.tasks
            for text in texts
            for row in measure(Path(folder), task, text, merges, args.threads, args.repeats)
        ]
        bandwidth = sum(run["mb_per_second"] for run in run_together(Path(folder), {"task": "copy"}, usable_cores()))
    print(report(rows, bandwidth))
    if args.json:
        write_json(args.json, rows)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.tokenizer.scaling", __doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the texts, as for bench.tokenizer")
    parser.add_argument("--megabytes", type=int, metavar="N", help="use only about N MB of each text")
    add_choices(parser, "--tasks", TASKS, TASKS)
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", default=[1, 2], help="default: 1 2")
    parser.add_argument("--repeats", type=int, metavar="N", default=5, help="default: 5")
    add_json(parser)
    args = parser.parse_args()
    check_positive("--threads", args.threads)
    check_positive("--repeats", [args.repeats])
    args.threads = sorted({1, *args.threads})
    return args


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(folder: Path, task: str, text: str, merges: str, threads: list[int], repeats: int) -> list[dict[str, Any]]:
    """Return one row per number of threads, and one per number of processes greater than 1; they take turns."""
    job = {"task": task, "input": str(folder / f"{text}.txt"), "warm_up": str(folder / "warm_up.txt")}
    job["folder"] = str(folder / merges)
    runs: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(repeats):
        for number in threads:
            runs["threads", number] += run_together(folder, job | {"threads": number}, 1)
            if number > 1:
                together = run_together(folder, job | {"threads": 1}, number)
                slowest = max(together, key=lambda run: run["seconds"])
                runs["processes", number].append(slowest | {"bytes": sum(run["bytes"] for run in together)})
    return [
        {
            "task": task,
            "text": text,
            kind: number,
            "mb_per_second": median(run["bytes"] / run["seconds"] / 1e6 for run in of_case),
            "serial": median(1 - run["parallel_seconds"] / run["seconds"] for run in of_case),
        }
        for (kind, number), of_case in runs.items()
    ]


def run_together(folder: Path, job: dict[str, Any], num_processes: int) -> list[dict[str, Any]]:
    """Run a job in several processes, each on its part of the text; they start to work at the same time."""
    with TemporaryDirectory(dir=folder) as meeting:
        parts = [job | {"part": part, "num_parts": num_processes, "meeting": meeting} for part in range(num_processes)]
        return [finish(_TIMEOUT) for finish in [start_job("bench.tokenizer.scaling_job", part) for part in parts]]


def predict(serial: float, num_threads: int, speed: float, bandwidth: float) -> float:
    """Return the predicted speed of several threads, relative to one.

    Args:
        serial: The share of the time of one thread in which no other thread can work.
        num_threads: The number of threads.
        speed: Of one thread, in MB of text per second.
        bandwidth: Of the memory, in MB per second that all cores together can read or write.

    >>> predict(0.05, 16, 300, 1e6)
    9.142857142857142
    >>> predict(0.05, 16, 300, 10_000)
    6.0606060606060606
    """
    return min(1 / (serial + (1 - serial) / num_threads), bandwidth / (_BYTES_MOVED * speed))


def report(rows: list[dict[str, Any]], bandwidth: float) -> str:
    """Return the Markdown of the rows."""
    cases: dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        kind = "threads" if "threads" in row else "processes"
        cases[row["task"], row["text"]][kind, row[kind]] = row
    numbers = sorted({row["threads"] for row in rows if row.get("threads", 1) > 1})
    columns = [(kind, number) for number in numbers for kind in ("threads", "processes")]
    head = ["task", "text", "MB/s", "serial", *(f"{kind} {number}" for kind, number in columns)]
    lines = [head + [f"predicted {number}" for number in _PREDICTED]]
    lines.append(["---"] * 2 + ["---:"] * (len(lines[0]) - 2))
    for (task, text), of_case in cases.items():
        one = of_case["threads", 1]
        speed, serial = one["mb_per_second"], one["serial"]
        ratios = [of_case[column]["mb_per_second"] / speed for column in columns]
        ratios += [predict(serial, number, speed, bandwidth) for number in _PREDICTED]
        lines.append([task, text, f"{speed:.0f}", f"{100 * serial:.1f}%", *(f"{ratio:.2f}" for ratio in ratios)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{machine()}; all cores together copy {bandwidth / 1e3:.1f} GB/s.\n\n{table}"


if __name__ == "__main__":
    exit_cleanly(main)
