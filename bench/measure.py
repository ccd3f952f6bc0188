"""One measurement in a process of its own: `python bench/measure.py JOB`, a JSON object, prints a JSON object.

Not timed: imports, reading the input, constructing, and a first go at other text, which loads or compiles what the
library needs. Then a new tokenizer, its caches cold, does the job twice: `seconds` is the first call, `second_seconds`
the one after it, left out where the first took long. Training has no second call.

`peak_mb` is the most resident memory during the first call above what the process held before it, input included.
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

DOCUMENT_LENGTH = 4096  # characters

_LONG = 3.0  # seconds
_WARM_UP_VOCAB_SIZE = 1000


def main() -> None:
    job = json.loads(sys.argv[1])
    limit_threads(job["threads"])
    print(json.dumps(measure(job)))


def limit_threads(threads: int) -> None:
    """Leave this process so many processors and tell the libraries; to be called before one of them is imported."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job: `system`, `task`, `threads`, and the paths `input` and `warm_up`, of a text or, to decode, of ids.

    To train it has a `vocab_size`, for all else the `folder` of a tokenizer. `check` is the size of the vocabulary that
    training made, or else a digest of the result.
    """
    # Imported here: the libraries read the number of threads when they are loaded.
    from systems import SYSTEMS

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
    if seconds < _LONG:
        measured["second_seconds"] = _timed(lambda: call(data))[1]
    return measured


def digest(result: Any) -> str:
    """A hash of a text, of the ids of one text, or of the ids and the lengths of many documents.

    Equal for equal ids, whether they come as lists, as arrays, or as one array and the offsets of the documents.
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


def _read(path: Path, system: type, task: str) -> Any:
    """The input of a task in the form that the system takes, in memory where it takes it from there."""
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
    """The result, the seconds and the peak in MB."""
    gc.collect()
    before = reset_resident_peak()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return result, seconds, (resident_peak() - before) / 1e6


def reset_resident_peak() -> int:
    """Let the peak begin anew, where the system can do that; the resident memory now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux: the peak is the process's, and a call that stays below an earlier peak counts as 0
    return resident_peak()


def resident_peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource  # there is none on Windows

        # In kB, except on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
