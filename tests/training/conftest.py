import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.config import Params
from lm.corpus.config import END_OF_TEXT
from lm.model.config import ModelConfig
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig, RuntimeConfig
from lm.training.data import Data
from lm.training.loop import OutputPaths, Result
from lm.training.train import train

PROGRAM = Path(__file__).with_name("training_program.py")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The bytes alone, and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture(scope="session")
def data(tokenizer: Tokenizer) -> Data:
    text = "".join(f"{i} and {i + 1} make {2 * i + 1}.{END_OF_TEXT}" for i in range(150))
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    val_bytes = len(bytes(tokenizer.decode(ids[-300:]), "utf-8")) - text[-300:].count(END_OF_TEXT) * len(END_OF_TEXT)
    return Data(train=ids[:-300], val=ids[-300:], val_text_bytes=val_bytes, val_entropy_bits=100.0, identity="x")


@pytest.fixture(scope="session")
def run(params: Params, small: ModelConfig) -> RunConfig:
    return RunConfig(
        model=small,
        optim=dataclasses.replace(params.optim, max_learning_rate=3e-3, warmup_steps=2),
        train=dataclasses.replace(params.train, max_steps=12, batch_size=4, eval_every=4, precision="float32"),
    )


@pytest.fixture(scope="session")
def runtime() -> RuntimeConfig:
    return RuntimeConfig(
        device="cpu",
        num_processes=1,
        parallelism="ddp",
        compile=False,
        attention_backend="sdpa",
        micro_batch_size=0,
        checkpoint_activations=False,
        checkpoint_every=3,
        keep_checkpoints=2,
        tracking="none",
    )


@pytest.fixture(scope="session")
def paths_in():
    """What a training in a folder writes."""

    def paths_in(folder: Path) -> OutputPaths:
        return OutputPaths(
            checkpoints=folder / "checkpoints",
            tracking=folder / "tracking",
            curve=folder / "curve.csv",
            metrics=folder / "metrics.json",
        )

    return paths_in


@pytest.fixture
def trained(data: Data, tokenizer: Tokenizer, runtime: RuntimeConfig, paths_in, tmp_path: Path):
    """Train a run to its end; its checkpoints and curve lie in a folder by the name given."""

    def trained(run: RunConfig, name: str = "run", runtime: RuntimeConfig = runtime, data: Data = data) -> Result:
        results: list[Result] = []
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        train(run, data, tokenizer, runtime, paths_in(folder), results.append)
        return results[0]

    return trained


@pytest.fixture(scope="session")
def start(run, data, tokenizer, runtime):
    """Start the training in a folder, in some processes, with a fault or none; what a run changes may be given."""

    def start(folder: Path, processes: int = 1, fault: tuple | None = None, changed=run, **options) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        job = {
            "run": changed,
            "data": data,
            "tokenizer": tokenizer,
            "runtime": dataclasses.replace(runtime, num_processes=processes, **options),
            "fault": fault,
        }
        (folder / "job").write_bytes(pickle.dumps(job))
        environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, PROGRAM, folder / "job", folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def ended():
    """Exit status, stdout and stderr of a program."""

    def ended(process: subprocess.Popen) -> tuple[int, str, str]:
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr

    return ended
