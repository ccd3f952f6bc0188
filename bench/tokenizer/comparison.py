"""Which cases are measured, and the measurement of every system in each of them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bench.common.jobs import NotMeasured, run_job
from bench.common.tables import Problem
from bench.tokenizer.inputs import DECODED_TEXTS, GENERATED_VOCAB_SIZE, VOCAB_SIZES
from bench.tokenizer.systems import SYSTEMS

TASKS = ["train", "encode", "encode_documents", "decode"]

_TEXTS = {"train": ["stories", "all"], "decode": DECODED_TEXTS}  # the other tasks take all texts
_LONG_SECONDS = 3.0
_TIMEOUT = 900.0  # seconds


@dataclass(frozen=True)
class Case:
    """What the systems are compared on: a row of a table.

    `merges` is `gpt2` or `trained`, or one of them with a pattern, as in `gpt2/llama3`; it is empty for training.
    """

    task: str
    text: str
    merges: str
    vocab_size: int
    threads: int

    def __str__(self) -> str:
        return f"{self.task}, {self.text}, vocab_size {self.vocab_size}, threads {self.threads}"


def cases_of(
    task: str, texts: list[str], tokenizers: dict[str, int], threads: list[int], *, quick: bool = False
) -> list[Case]:
    """Return the cases of a task: every text with every vocabulary and number of threads.

    Args:
        task: one of `TASKS`.
        texts: the names of all texts.
        tokenizers: the names of the tokenizers and their vocabulary sizes.
        threads: the numbers of threads.
        quick: whether to train only the first of the vocabulary sizes.
    """
    is_generated = "generated" in texts
    if not is_generated:
        texts = _TEXTS.get(task, texts)
    if task == "train":
        sizes = [GENERATED_VOCAB_SIZE] if is_generated else VOCAB_SIZES[: 1 if quick else None]
        vocabularies = [("", size) for size in sizes]
    else:
        vocabularies = list(tokenizers.items())
    if task == "decode":
        vocabularies = [(name, size) for name, size in vocabularies if "/" not in name]  # patterns make no difference
        threads = threads[:1]  # no system decodes one text with several threads
    return [Case(task, text, *vocabulary, n) for text in texts for vocabulary in vocabularies for n in threads]


def compare(
    folder: Path, cases: list[Case], systems: list[str], repeats: int
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Measure every system in every case of a task that it does; the systems take turns.

    A system whose first call is long is called once.

    Returns:
        A row per case and system that was measured, and the problems of the others.
    """
    rows, problems = [], []
    contenders = {case: [name for name in systems if hasattr(SYSTEMS[name], case.task)] for case in cases}
    with tqdm(total=repeats * sum(map(len, contenders.values())), unit="process", disable=None) as bar:
        for case, names in contenders.items():
            expected: Any = case.vocab_size if case.task == "train" else None
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for name in names * repeats:
                bar.set_postfix_str(f"{case.task} {case.text} {name}")
                if name in runs and not (runs[name] and runs[name][0]["seconds"] > _LONG_SECONDS):
                    try:
                        run = measure(folder, case, name)
                        expected = expected or run["check"]
                        if run["check"] != expected:
                            raise NotMeasured(_difference(case.task, run["check"], next(iter(runs))))
                        runs[name].append(run)
                    except NotMeasured as error:
                        problems.append(Problem(name, str(error), str(case)))
                        del runs[name]
                bar.update()
            rows += [_row(case, name, of_system) for name, of_system in runs.items()]
    return rows, problems


def measure(folder: Path, case: Case, system: str) -> dict[str, Any]:
    """Measure a system once in a fresh process, on the inputs in `folder`.

    Raises:
        NotMeasured: the process failed.
    """
    job = {"system": system, "task": case.task, "threads": case.threads, "vocab_size": case.vocab_size}
    job["folder"] = str(folder / case.merges)
    inputs, suffix = (folder / case.merges, ".npy") if case.task == "decode" else (folder, ".txt")
    job |= {"input": str(inputs / (case.text + suffix)), "warm_up": str(inputs / ("warm_up" + suffix))}
    return run_job("bench.tokenizer.measure", job, _TIMEOUT)


def _difference(task: str, check: Any, first: str) -> str:
    if task == "train":
        return f"trained a vocabulary of {check}"
    return f"its text differs from that of {first}" if task == "decode" else f"its ids differ from those of {first}"


def _row(case: Case, system: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    row = asdict(case) | {"system": system, "calls": len(runs), "peak_mb": median(run["peak_mb"] for run in runs)}
    for name, seconds in {"mb_per_second": "seconds", "second_mb_per_second": "second_seconds"}.items():
        speeds = [run["bytes"] / run[seconds] / 1e6 for run in runs if seconds in run]  # a long call has no second
        if speeds:
            row[name] = median(speeds)
    return row
