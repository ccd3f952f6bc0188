"""One measurement in a fresh process: `python -m bench.tokenizer.measure JOB` reads and prints a JSON object.

Not timed: imports, reading the input, building the tokenizer, and a first call on other text, during which the library
loads or compiles what it needs. Then a new tokenizer with empty caches does the task twice: `seconds` is the time of
the first call, `second_seconds` that of the second, which is left out if the first took long. Training is not repeated.

`peak_mb` is the largest resident memory during the first call, minus what the process held before it, which includes
the input.
"""

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.common.memory import reset_resident_peak, resident_peak

DOCUMENT_LENGTH = 4096  # characters

_LONG_SECONDS = 3.0
_WARM_UP_VOCAB_SIZE = 1000


def main() -> None:
    job = json.loads(sys.argv[1])
    limit_threads(job["threads"])
    print(json.dumps(measure(job)))


def limit_threads(threads: int) -> None:
    """Restrict this process to `threads` processors and tell the libraries. Call it before one of them is imported."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job and return its times, its memory, and a `check` of its result.

    A job has a `system`, a `task`, `threads`, and the paths `input` and `warm_up`: texts or, to decode, token ids. To
    train it also has a `vocab_size`, otherwise the `folder` of a tokenizer's files. `check` is the size of the trained
    vocabulary, or a digest of the result.
    """
    # Imported here because libraries read the number of threads when they are imported.
    from bench.tokenizer.systems import SYSTEMS

    system = SYSTEMS[job["system"]]
    task, threads = job["task"], job["threads"]
    text_bytes = Path(job["input"]).stat().st_size
    data, warm_up = (_read(Path(job[name]), system, task) for name in ("input", "warm_up"))

    if task == "train":
        system.train(warm_up, _WARM_UP_VOCAB_SIZE, threads)
        size, seconds, peak = _timed(lambda: system.train(data, job["vocab_size"], threads))
        return {"check": size, "bytes": text_bytes, "seconds": seconds, "peak_mb": peak}

    folder = Path(job["folder"])
    getattr(system(folder, threads), task)(warm_up)
    call = getattr(system(folder, threads), task)
    result, seconds, peak = _timed(lambda: call(data))
    if task == "decode":
        text_bytes = len(result.encode())
    measured = {"check": digest(result), "bytes": text_bytes, "seconds": seconds, "peak_mb": peak}
    del result
    if seconds < _LONG_SECONDS:
        measured["second_seconds"] = _timed(lambda: call(data))[1]
    return measured


def digest(result: Any) -> str:
    """Return a hash of a text, of the token ids of one text, or of the ids and lengths of many documents.

    It is the same for equal ids in lists, in arrays, and in one array with the offsets of the documents.
    """
    import numpy as np

    if isinstance(result, str):
        return hashlib.sha256(result.encode()).hexdigest()
    if isinstance(result, tuple):
        ids, offsets = result
        lengths = np.diff(offsets)
    elif len(result) and not np.ndim(result[0]):
        ids, lengths = result, [len(result)]
    else:
        ids = np.concatenate([np.asarray(document, np.uint32) for document in result])
        lengths = [len(document) for document in result]
    parts = np.asarray(ids, np.uint32).tobytes(), np.asarray(lengths, np.uint64).tobytes()
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read(path: Path, system: type[Any], task: str) -> Any:
    """Return the input of a task in the form that the system takes: a path, or the data in memory."""
    from lm.corpus.config import END_OF_TEXT

    if task == "decode":
        import numpy as np

        ids = np.load(path)
        return ids if system.decodes == "array" else ids.tolist()
    if task == "train" and system.trains_from == "path":
        return path
    text = path.read_bytes().decode()
    if task == "train":
        return text.split(END_OF_TEXT)
    if task == "encode_documents":
        return [text[start : start + DOCUMENT_LENGTH] for start in range(0, len(text), DOCUMENT_LENGTH)]
    return text


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, the seconds, and the peak memory in MB."""
    gc.collect()
    before = reset_resident_peak()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return result, seconds, (resident_peak() - before) / 1e6


if __name__ == "__main__":
    main()
