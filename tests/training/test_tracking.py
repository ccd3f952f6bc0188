import math
import shutil
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lm.errors import UserError
from lm.training.tracking import tracker

CONFIG = {"optim": {"max_learning_rate": 0.01}, "train": {"prompt": "Once upon a time"}}


def test_none_writes_nothing(tmp_path):
    with tracker("none", tmp_path / "tracking", "run", CONFIG, -1) as log:
        log(1, {"train_loss": 2.5, "val_loss": None})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError) as caught, tracker(kind, tmp_path / "tracking", "run", CONFIG, -1):
        pass
    assert str(caught.value) == f"runtime.tracking: {kind} is not installed; run pip install {kind} or use none"
    assert list(tmp_path.iterdir()) == []


# TensorBoard: what its own reader finds in the files.


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows for a folder."""
    reader = _reader(folder)
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def texts(folder: Path) -> list[str]:
    (tag,) = _reader(folder).Tags()["tensors"]
    return [event.tensor_proto.string_val[0].decode() for event in _reader(folder).Tensors(tag)]


def _reader(folder: Path) -> Any:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    everything = {"scalars": 0, "tensors": 0}
    return event_accumulator.EventAccumulator(str(folder), size_guidance=everything).Reload()


@pytest.fixture
def tensorboard() -> None:
    pytest.importorskip("tensorboard")


def test_tensorboard_shows_the_points_and_the_config(tensorboard, tmp_path):
    with tracker("tensorboard", tmp_path, "run", CONFIG, -1) as log:
        log(0, {"val_loss": 5.5, "train_loss": None})
        log(1, {"train_loss": 2.5, "grad_norm": math.nan})
        log(2, {"train_loss": 1.25, "grad_norm": 0.5})
        log(2, {"val_loss": 1.5})
    curves = points(tmp_path / "run")
    assert curves["train_loss"] == [(1, 2.5), (2, 1.25)]
    assert curves["val_loss"] == [(0, 5.5), (2, 1.5)]
    (first, nan), second = curves["grad_norm"]
    assert first == 1 and math.isnan(nan) and second == (2, 0.5)
    (text,) = texts(tmp_path / "run")
    assert '"max_learning_rate": 0.01' in text and '"prompt": "Once upon a time"' in text


@pytest.mark.parametrize("resumed_at", [-1, 0, 3, 5])
def test_tensorboard_shows_a_resumed_run_as_one_that_was_never_killed(resumed_at, tensorboard, tmp_path, monkeypatch):
    with tracker("tensorboard", tmp_path, "run", CONFIG, -1) as log:
        for step in range(6):
            log(step, {"train_loss": float(step)})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)  # TensorBoard reads the files in order of their second
    with tracker("tensorboard", tmp_path, "run", CONFIG, resumed_at) as log:
        for step in range(resumed_at + 1, 8):
            log(step, {"train_loss": 100.0 + step})
    stand = [(step, float(step)) for step in range(resumed_at + 1)]
    assert points(tmp_path / "run") == {
        "train_loss": stand + [(step, 100.0 + step) for step in range(resumed_at + 1, 8)]
    }


def test_tensorboard_keeps_runs_apart(tensorboard, tmp_path):
    for name, loss in (("a", 1.0), ("b", 2.0)):
        with tracker("tensorboard", tmp_path, name, CONFIG, -1) as log:
            log(1, {"train_loss": loss})
    assert points(tmp_path / "a") == {"train_loss": [(1, 1.0)]}
    assert points(tmp_path / "b") == {"train_loss": [(1, 2.0)]}


# TensorBoard writes in a separate thread, whose exception Python reports too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fails_during_training_is_reported_once(tensorboard, tmp_path, capsys):
    before = set(threading.enumerate())
    with tracker("tensorboard", tmp_path, "run", CONFIG, -1) as log:
        shutil.rmtree(tmp_path)
        step, deadline = 0, time.monotonic() + 10
        while not (lines := capsys.readouterr().out) and time.monotonic() < deadline:
            log(step := step + 1, {"train_loss": 2.5})
        for later in range(step + 1, step + 100):
            log(later, {"train_loss": 2.5})
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # or its exception would be reported to the next test
    assert lines.startswith("runtime.tracking: training continues without tensorboard: ") and lines.count("\n") == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_folder_that_cannot_be_written_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, StandIn())
    (tmp_path / "tracking").write_text("a file")
    refused = pytest.raises(UserError, match=r"tracking: cannot be written \(Not a directory\)")
    with refused, tracker(kind, tmp_path / "tracking", "run", CONFIG, -1):
        pass


# Weights & Biases: which calls its package receives.


class StandIn(ModuleType):
    """Stands in for the part of wandb that is used: records the calls, and raises in the one named `broken`."""

    def __init__(self, logged_in: bool = True, starting_step: int = 0, broken: str = "") -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.logged_in, self.starting_step, self.broken = logged_in, starting_step, broken
        self.calls: list[tuple[str, Any]] = []

    def _call(self, name: str, facts: Any) -> None:
        self.calls.append((name, facts))
        if name == self.broken:
            raise ConnectionError(f"{name} failed\nand so on")

    def of(self, name: str) -> list[Any]:
        return [facts for call, facts in self.calls if call == name]

    def login(self, prompt: bool) -> bool:
        assert prompt is False  # or it would wait for a key on the terminal
        return self.logged_in

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> SimpleNamespace:
        self._call("init", arguments)
        return SimpleNamespace(
            offline=arguments["mode"] == "offline",
            starting_step=self.starting_step,
            define_metric=lambda name, step_metric: self._call("define_metric", (name, step_metric)),
            log=lambda values, step: self._call("log", (step, values)),
            finish=lambda exit_code: self._call("finish", exit_code),
        )


@pytest.fixture
def stand_in(monkeypatch):
    def stand_in(**facts: Any) -> StandIn:
        module = StandIn(**facts)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return stand_in


def test_wandb_gets_the_points_and_the_config(stand_in, tmp_path, capsys):
    wandb = stand_in()
    with tracker("wandb", tmp_path, "0f3a", CONFIG, -1) as log:
        log(0, {"val_loss": 5.5, "train_loss": None})
        log(1, {"train_loss": 2.5, "grad_norm": 0.5})
    (arguments,) = wandb.of("init")
    assert {name: arguments[name] for name in ("id", "resume", "config", "dir", "mode")} == {
        "id": "0f3a",
        "resume": "allow",
        "config": CONFIG,
        "dir": str(tmp_path / "0f3a"),
        "mode": None,
    }
    assert (tmp_path / "0f3a").is_dir()  # wandb silently uses a temporary folder where it is missing
    assert wandb.of("define_metric") == [("*", "step")]
    assert wandb.of("log") == [(0, {"step": 0, "val_loss": 5.5}), (1, {"step": 1, "train_loss": 2.5, "grad_norm": 0.5})]
    assert wandb.of("finish") == [0]
    assert capsys.readouterr().out == ""


def test_wandb_without_a_login_stays_offline_and_says_how_to_upload(stand_in, tmp_path, capsys):
    wandb = stand_in(logged_in=False)
    with tracker("wandb", tmp_path, "run", CONFIG, -1):
        pass
    assert wandb.of("init")[0]["mode"] == "offline"
    assert f"wandb sync {tmp_path}/run/wandb/offline-run-*" in capsys.readouterr().out


def test_steps_that_wandb_already_has_are_not_sent_again(stand_in, tmp_path):
    wandb = stand_in(starting_step=8)  # steps 0 to 7 were sent before the kill; the checkpoint is of step 5
    with tracker("wandb", tmp_path, "run", CONFIG, 5) as log:
        for step in range(6, 11):
            log(step, {"train_loss": float(step)})
    assert [step for step, _ in wandb.of("log")] == [8, 9, 10]


def test_wandb_does_not_show_an_interrupted_run_as_finished(stand_in, tmp_path):
    wandb = stand_in()
    with pytest.raises(KeyboardInterrupt), tracker("wandb", tmp_path, "run", CONFIG, -1):
        raise KeyboardInterrupt
    assert wandb.of("finish") == [1]


def test_a_tracker_that_cannot_be_started_is_refused_in_one_line(stand_in, tmp_path):
    stand_in(broken="init")
    with pytest.raises(UserError) as caught, tracker("wandb", tmp_path, "run", CONFIG, -1):
        pass
    assert str(caught.value) == "runtime.tracking: wandb cannot be started (init failed); fix it or use none"


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_tracker_that_fails_during_training_is_reported_once(broken, stand_in, tmp_path, capsys):
    wandb = stand_in(broken=broken)
    with tracker("wandb", tmp_path, "run", CONFIG, -1) as log:
        for step in range(5):
            log(step, {"train_loss": 2.5})
    assert capsys.readouterr().out == f"runtime.tracking: training continues without wandb: {broken} failed\n"
    assert len(wandb.of(broken)) == 1
