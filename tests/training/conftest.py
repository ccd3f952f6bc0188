import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import lm.training.evaluation
from lm.corpus.config import END_OF_TEXT
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig, RuntimeConfig
from lm.training.data import Data
from lm.training.loop import OutputPaths, Result
from lm.training.train import train
from tests.training import training_program

PROGRAM = Path(__file__).with_name("training_program.py")


@pytest.fixture(autouse=True)
def short_continuations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of a tiny run would go to them."""
    monkeypatch.setattr(lm.training.evaluation, "CONTINUATION_TOKENS", 8)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer of single bytes and the end of text."""
    return Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: END_OF_TEXT.encode()}, [], [END_OF_TEXT])


@pytest.fixture(scope="session")
def data(tokenizer: Tokenizer) -> Data:
    text = "".join(f"{i} and {i + 1} make {2 * i + 1}.{END_OF_TEXT}" for i in range(150))
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    val_bytes = len(bytes(tokenizer.decode(ids[-300:]), "utf-8")) - text[-300:].count(END_OF_TEXT) * len(END_OF_TEXT)
    return Data(train=ids[:-300], val=ids[-300:], val_text_bytes=val_bytes, val_entropy_bits=None, identity="x")


@pytest.fixture(scope="session")
def paths_in() -> Callable[[Path], OutputPaths]:
    return training_program.paths_in


@pytest.fixture(scope="session")
def short_first(run: RunConfig) -> RunConfig:
    """Short windows for 5 of 12 steps: 5 of the 16 tokens of a window, so 3 windows in place of one."""
    train = dataclasses.replace(run.train, windows="documents", short_fraction=0.4, short_context_length=5)
    return dataclasses.replace(run, train=train)


class Stopped(Exception):
    """Stands for whatever ends a run early."""


def weights_of(result: Result) -> dict[str, Tensor]:
    return dict(result.model.named_parameters())


@pytest.fixture(scope="session")
def undisturbed(data: Data, tokenizer: Tokenizer, runtime: RuntimeConfig, tmp_path_factory: pytest.TempPathFactory):
    """Train a run that is not stopped, once for all tests; returns its weights, its result and its curve."""
    finished: dict[RunConfig, tuple[dict[str, Tensor], Result, bytes]] = {}

    def undisturbed(run: RunConfig) -> tuple[dict[str, Tensor], Result, bytes]:
        if run not in finished:
            results: list[Result] = []
            folder = tmp_path_factory.mktemp("undisturbed")
            train(run, data, tokenizer, runtime, training_program.paths_in(folder), results.append)
            finished[run] = weights_of(results[0]), results[0], (folder / "curve.csv").read_bytes()
        return finished[run]

    return undisturbed


@pytest.fixture
def trained(data: Data, tokenizer: Tokenizer, runtime: RuntimeConfig, tmp_path: Path):
    """Train a run to its end in this process; its checkpoints and curve are in the folder `tmp_path / name`."""

    def trained(run: RunConfig, name: str = "run", runtime: RuntimeConfig = runtime, data: Data = data) -> Result:
        results: list[Result] = []
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        train(run, data, tokenizer, runtime, training_program.paths_in(folder), results.append)
        return results[0]

    return trained


class Fork:
    """A process like those of `subprocess`, forked from a server that has imported PyTorch already."""

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload([training_program.__name__])

    def __init__(self, job: Path, folder: Path) -> None:
        self._outputs = folder / "stdout", folder / "stderr"
        arguments = job, folder, *self._outputs
        self._process = self._context.Process(target=training_program.run_redirected, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        stdout, stderr = (path.read_text() for path in self._outputs)
        return stdout, stderr


@pytest.fixture(scope="session")
def start(run: RunConfig, data: Data, tokenizer: Tokenizer, runtime: RuntimeConfig):
    """Start a training in a folder, with one or more processes and perhaps a fault; `options` change the runtime.

    The processes are forked, unless `fresh` asks for new interpreters, as users start them.
    """

    def start(
        folder: Path,
        processes: int = 1,
        fault: tuple | None = None,
        changed: RunConfig = run,
        fresh: bool = False,
        **options,
    ) -> Fork | subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        job = {
            "run": changed,
            "data": data,
            "tokenizer": tokenizer,
            "runtime": dataclasses.replace(runtime, num_processes=processes, **options),
            "fault": fault,
        }
        (folder / "job").write_bytes(pickle.dumps(job))
        if not fresh:
            return Fork(folder / "job", folder)
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
    """Wait for a process; returns its exit status, stdout and stderr."""

    def ended(process: Fork | subprocess.Popen[str]) -> tuple[int | None, str, str]:
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr

    return ended
