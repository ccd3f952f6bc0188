"""llama2.c's run.c as a system that generates: a program, which gets our weights in files of its own layout."""

import os
import re
import struct
import subprocess
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from learners import Lm

from lm.model.config import ModelConfig

FIRST_TOKEN = 1  # it begins no text with another
LEAST_TIMINGS = 3


def run_c(job: dict[str, Any]) -> dict[str, Any]:
    """A job of `measure_generation.generation`, by the program in the checkout `source`, compiled as by `make runomp`.

    Its pieces of text are made to be the ids. Its time is the one that it reports, without the first token.
    """
    if job["dtype"] != "float32" or job["batch_size"] != 1 or job["device"] != "cpu":
        raise ValueError("it has float32 on the CPU alone, and one text at a time")
    config, vocab_size, new_tokens = ModelConfig(**job["model"]), job["vocab_size"], job["new_tokens"]
    runs: list[tuple[float, list[int], int]] = []
    with TemporaryDirectory() as folder:
        program, model, tokenizer = (Path(folder) / name for name in ("run", "model.bin", "tokenizer.bin"))
        compiler = ["gcc", "-Ofast", "-fopenmp", "-march=native", Path(job["source"]) / "run.c", "-lm", "-o", program]
        subprocess.run(compiler, check=True, capture_output=True)
        _write_model(model, config, vocab_size)
        _write_vocabulary(tokenizer, vocab_size)
        command = [program, model, "-z", tokenizer, "-t", "0", "-n", str(new_tokens)]
        while len(runs) < LEAST_TIMINGS or sum(seconds for seconds, _, _ in runs) < job["seconds"]:
            runs.append(_timed(command, Path(folder), new_tokens))
    return {
        "seconds": median(seconds for seconds, _, _ in runs),
        "generations": len(runs),
        "ids": [runs[0][1]],
        "peak_mb": max(peak for _, _, peak in runs) / 1e6,
    }


def _write_model(path: Path, config: ModelConfig, vocab_size: int) -> None:
    """Our weights in the order in which run.c maps them; a negative vocabulary says that the head has its own."""
    weights = Lm(config, vocab_size, "sdpa", None).model.state_dict()

    def of_layers(name: str) -> list[torch.Tensor]:
        return [weights[f"layers.{layer}.{name}.weight"] for layer in range(config.num_layers)]

    sizes = config.d_model, config.d_ff, config.num_layers, config.num_heads, config.num_kv_heads
    angles = torch.zeros(config.context_length * config.d_head)  # skipped: it computes them
    attention = [f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "output_proj")]
    inside = ["ffn.w1", "ffn.w2", "ffn.w3"]
    in_order = [weights["token_embeddings.weight"]]
    for name in ["ln1", *attention, "ln2", *inside]:
        in_order += of_layers(name)
    in_order += [weights["ln_final.weight"], angles, weights["lm_head.weight"]]
    with path.open("wb") as file:
        file.write(struct.pack("7i", *sizes, -vocab_size, config.context_length))
        for tensor in in_order:
            file.write(tensor.numpy().tobytes())


def _write_vocabulary(path: Path, vocab_size: int) -> None:
    """The longest length, then of every token a score, a length and the bytes: its id and a comma."""
    pieces = [b"%d," % token_id for token_id in range(vocab_size)]
    with path.open("wb") as file:
        file.write(struct.pack("i", max(map(len, pieces))))
        for piece in pieces:
            file.write(struct.pack("fi", 0.0, len(piece)) + piece)


def _timed(command: list[Any], folder: Path, new_tokens: int) -> tuple[float, list[int], int]:
    """Seconds for all tokens at the rate that the program reports, the ids, and the most bytes that it held."""
    out, errors = folder / "out", folder / "errors"
    peak = 0  # the system's own figure begins with what this process held
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with out.open("wb") as to_out, errors.open("wb") as to_errors:
        process = psutil.Popen(command, stdout=to_out, stderr=to_errors, env=threads)
        while process.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)
    rate = re.search(r"achieved tok/s: ([\d.]+)", errors.read_text())
    if process.returncode or not rate:
        raise RuntimeError(f"run.c failed, exit status {process.returncode}: {errors.read_text()[-200:]}")
    ids = [int(piece) for piece in out.read_text().split(",") if piece.strip()]
    return new_tokens / float(rate[1]), ids, peak
