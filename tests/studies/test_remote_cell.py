"""Training a cell elsewhere, with a small program in place of the stage, and in this process in place of a machine."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.cluster import SharedPath, WorkerLost
from lm.errors import UserError
from lm.studies import remote_cell
from lm.studies.cell_paths import CellPaths
from lm.studies.remote_cell import CellEnd, run_cell, train_remotely
from lm.tokens.manifest import sampled_sha256

# Each run writes a checkpoint, and the last of three writes the outputs, so training needs what earlier runs have left.
STAGE = """
import os, signal, sys, time
from pathlib import Path
assert Path("tokens/train.bin").read_bytes() == b"train" and Path("tokens/val.bin").read_bytes() == b"val"
assert Path("plan/cell.json").exists() and Path("tokenizer/vocab.json").exists() and Path("params.yaml").exists()
run = Path("checkpoints/run")
number = len(list(run.glob("step-*/index.json"))) + 1
(run / f"step-{number}").mkdir(parents=True)
(run / f"step-{number}/weights").write_bytes(bytes([number]))
(run / f"step-{number}/index.json").write_text("{}")
time.sleep(0.3)
ENDING
for name in ("metrics", "curve", "tracking"):
    Path(name).mkdir()
Path("metrics/cell").write_text("loss")
Path("curve/cell").write_text("step")
Path("tracking/events").write_text("log")
print("cell: 1.0 bits per byte")
"""
KILLED = "if number < 3: os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellPaths:
    monkeypatch.setattr(remote_cell, "_POLL_SECONDS", 0.05)
    for folder in ("tokens", "tokenizer", "plan"):
        (tmp_path / folder).mkdir()
    for name in ("params.yaml", "plan/cell.json", "tokenizer/vocab.json"):
        (tmp_path / name).write_text("{}")
    splits = []
    for split in ("train", "val"):
        path = tmp_path / f"tokens/{split}.bin"
        path.write_text(split)
        sha256 = hashlib.sha256(split.encode()).hexdigest()
        shard = f'{{"count": 1, "sha256": "{sha256}", "sampled_sha256": "{sampled_sha256(path)}"}}'
        splits.append(f'"{split}": {{"bytes": 1, "documents": 1, "count": 1, "shards": [{shard}]}}')
    manifest = '{"dtype": "uint16", "tokenizer_hash": "0", "vocab_size": 1, "splits": {' + ", ".join(splits) + "}}"
    (tmp_path / "tokens/manifest.json").write_text(manifest)
    return CellPaths(
        params=tmp_path / "params.yaml",
        plan=tmp_path / "plan/cell.json",
        tokenizer=tmp_path / "tokenizer",
        tokens=tmp_path / "tokens",
        checkpoints=tmp_path / "checkpoints",
        tracking=tmp_path / "tracking",
        metrics=tmp_path / "out/metrics.json",
        curve=tmp_path / "out/curve.csv",
        timing=None,
    )


def use_stage(monkeypatch: pytest.MonkeyPatch, ending: str = "") -> None:
    monkeypatch.setattr(remote_cell, "_command", lambda piece: [sys.executable, "-c", STAGE.replace("ENDING", ending)])


def test_the_outputs_come_back_and_the_checkpoints_are_deleted(paths, monkeypatch):
    use_stage(monkeypatch)
    assert train_remotely(paths, "none", num_cpus=1, num_gpus=0) == "cell: 1.0 bits per byte\n"
    assert paths.metrics.read_text() == "loss" and paths.curve.read_text() == "step"
    assert (paths.tracking / "events").read_text() == "log"
    assert not list(paths.checkpoints.iterdir())


def test_a_run_that_is_killed_continues_from_its_last_checkpoint(paths, monkeypatch, capsys):
    use_stage(monkeypatch, KILLED)
    train_remotely(paths, "none", num_cpus=1, num_gpus=0)
    assert paths.metrics.read_text() == "loss"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "training was ended by SIGKILL; continuing from the last checkpoint" in lines[0]


def test_a_run_that_is_always_killed_is_an_error_and_keeps_its_checkpoints(paths, monkeypatch, capsys):
    use_stage(monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(WorkerLost, match=r"^cell on \S+: training was ended by SIGKILL; check that the machine has"):
        train_remotely(paths, "none", num_cpus=1, num_gpus=0)
    assert len(capsys.readouterr().err.splitlines()) == 4
    kept = {path.parent.name: (path.parent / "weights").read_bytes() for path in paths.checkpoints.rglob("index.json")}
    assert kept == {f"step-{number}": bytes([number]) for number in range(1, 6)}


def test_the_error_of_the_stage_is_named(paths, monkeypatch):
    use_stage(monkeypatch, 'print("warning"); print("error: the loss is odd", file=sys.stderr); sys.exit(1)')
    with pytest.raises(UserError, match=r"^cell on \S+: the loss is odd$"):
        train_remotely(paths, "none", num_cpus=1, num_gpus=0)


def test_checkpoints_that_came_with_the_piece_are_not_sent_back(paths, monkeypatch):
    use_stage(monkeypatch)
    earlier = paths.checkpoints / "cell/run/step-1"
    earlier.mkdir(parents=True)
    for name in ("weights", "index.json"):
        (earlier / name).write_bytes(b"1")
    piece = remote_cell._piece(paths, paths.checkpoints / "cell", "none")
    *checkpoints, end = run_cell(piece)
    assert isinstance(end, CellEnd)
    assert [sorted(checkpoint.files) for checkpoint in checkpoints] == [["run/step-2/index.json", "run/step-2/weights"]]
    assert checkpoints[0].kept == ["run/step-1", "run/step-2"]


def test_checkpoints_that_the_machine_has_deleted_are_deleted(tmp_path):
    def checkpoint(name: str, kept: list[str]) -> remote_cell.Checkpoint:
        files = {f"run/{name}/{file}": np.frombuffer(b"x", np.uint8) for file in ("weights", "index.json")}
        return remote_cell.Checkpoint(files, [f"run/{other}" for other in kept])

    for name, kept in (("a", ["a"]), ("b", ["a", "b"]), ("c", ["b", "c"])):
        remote_cell._write_checkpoint(checkpoint(name, kept), tmp_path)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == kept


@pytest.mark.parametrize("sent", [b"tokens", b"others"])
def test_a_token_file_is_fetched_once_and_verified(tmp_path, monkeypatch, sent):
    copies = []

    def copy_to(shared: SharedPath, path: Path) -> Path:
        copies.append(path)
        path.write_bytes(sent)
        return path

    monkeypatch.setattr(SharedPath, "is_here", lambda shared: False)
    monkeypatch.setattr(SharedPath, "copy_to", copy_to)
    monkeypatch.setattr(remote_cell, "user_cache_path", lambda name: tmp_path / name)
    shared = SharedPath(Path("/elsewhere/train.bin"), "node")
    sha256 = hashlib.sha256(b"tokens").hexdigest()
    if sent == b"others":
        with pytest.raises(UserError, match=r"^/elsewhere/train\.bin: changed since it was written \(its checksum"):
            remote_cell._cached(shared, sha256)
        assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.unverified"))
        return
    for _ in range(2):
        path = remote_cell._cached(shared, sha256)
        assert path.read_bytes() == b"tokens" and path.name == f"{sha256}.bin"
    assert len(copies) == 1
