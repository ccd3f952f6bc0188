"""llama2.c's run.c as a system that generates: a program that gets our weights in a file format of its own.

`lm.export` has no such format. The weights and their order inside a head come from it; this module only writes them in
the sequence that run.c reads.
"""

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

from bench.common.models import Lm, llama2c_name
from lm.export.llama import llama_weights
from lm.model.config import ModelConfig

FIRST_TOKEN = 1  # the only one that run.c starts a text with
MIN_TIMINGS = 3

# Of each kind run.c reads the matrices of all layers, one after another.
_LAYER_WEIGHTS = [
    "attention_norm",
    *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    "ffn_norm",
    *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
]


def run_c(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job of `bench.generation.measure.generation_speed` with run.c from the folder `llama2c`.

    It is compiled like `make runomp` does. Its vocabulary is made such that the text it prints is the token ids. The
    time is the one that it reports, which leaves out the first token.

    Raises:
        ValueError: it does not support the job.
        RuntimeError: it failed.
    """
    if job["dtype"] != "float32" or job["batch_size"] != 1 or job["prompt_tokens"] != 1 or job["device"] != "cpu":
        raise ValueError("run.c supports only float32 on the CPU, one text at a time, and is measured without a prompt")
    config, vocab_size, new_tokens = ModelConfig(**job["model"]), job["vocab_size"], job["new_tokens"]
    runs: list[tuple[float, list[int], int]] = []
    with TemporaryDirectory() as folder:
        program, model, vocab = (Path(folder) / name for name in ("run", "model.bin", "tokenizer.bin"))
        compiler: list[Any] = [
            "gcc",
            "-Ofast",
            "-fopenmp",
            "-march=native",
            Path(job["llama2c"]) / "run.c",
            "-lm",
            "-o",
            program,
        ]
        subprocess.run(compiler, check=True, capture_output=True)
        _write_model(model, config, vocab_size)
        _write_vocab(vocab, vocab_size)
        command = [program, model, "-z", vocab, "-t", "0", "-n", str(new_tokens)]
        while len(runs) < MIN_TIMINGS or sum(seconds for seconds, _, _ in runs) < job["seconds"]:
            runs.append(_timed(command, Path(folder), new_tokens))
    return {
        "seconds": median(seconds for seconds, _, _ in runs),
        "generations": len(runs),
        "ids": [runs[0][1]],
        "peak_mb": max(peak for _, _, peak in runs) / 1e6,
    }


def _write_model(path: Path, config: ModelConfig, vocab_size: int) -> None:
    """Write our weights in the order in which run.c maps them into memory."""
    in_llama = llama_weights(Lm(config, vocab_size).model, half_split=False)
    weights = {llama2c_name(name): weight for name, weight in in_llama.items()}
    layers = [f"layers.{layer}.{name}.weight" for name in _LAYER_WEIGHTS for layer in range(config.num_layers)]
    rope_angles = torch.zeros(config.context_length * config.d_head)  # run.c skips them and computes its own
    tensors = [
        weights["tok_embeddings.weight"],
        *(weights[name] for name in layers),
        weights["norm.weight"],
        rope_angles,
        weights["output.weight"],
    ]
    sizes = config.d_model, config.d_ff, config.num_layers, config.num_heads, config.num_kv_heads
    with path.open("wb") as file:
        # A negative vocabulary size says that the output head is not tied to the embeddings.
        file.write(struct.pack("7i", *sizes, -vocab_size, config.context_length))
        for tensor in tensors:
            file.write(tensor.numpy().tobytes())


def _write_vocab(path: Path, vocab_size: int) -> None:
    """Write a vocabulary whose tokens are their ids, each followed by a comma.

    The file holds the length of the longest token, then the score, the length and the bytes of each.
    """
    tokens = [b"%d," % token_id for token_id in range(vocab_size)]
    with path.open("wb") as file:
        file.write(struct.pack("i", max(map(len, tokens))))
        for token in tokens:
            file.write(struct.pack("fi", 0.0, len(token)) + token)


def _timed(command: list[Any], folder: Path, new_tokens: int) -> tuple[float, list[int], int]:
    """Run the program and return the seconds for all tokens at the reported rate, the ids, and the peak in bytes."""
    out, errors = folder / "out", folder / "errors"
    peak = 0  # sampled, because the peak that the system keeps for a child starts with the memory of this process
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with out.open("wb") as to_out, errors.open("wb") as to_errors:
        process = psutil.Popen(command, stdout=to_out, stderr=to_errors, env=environment)
        while process.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)
    rate = re.search(r"achieved tok/s: ([\d.]+)", errors.read_text())
    if process.returncode or not rate:
        raise RuntimeError(f"run.c failed with exit status {process.returncode}: {errors.read_text()[-200:]}")
    ids = [int(token) for token in out.read_text().split(",") if token.strip()]
    return new_tokens / float(rate[1]), ids, peak
