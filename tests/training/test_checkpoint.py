import json
import math
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm.errors import UserError
from lm.schema import validate
from lm.training.adamw import AdamW
from lm.training.checkpoint import Checkpoints, _checksum, fingerprint
from lm.training.evaluation import DOCUMENT_LOSSES
from lm.training.history import HistoryRow, Progress
from lm.training.metrics import evaluation_row


def a_trained_pair(steps: int = 1) -> tuple[torch.nn.Module, AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def another_pair() -> tuple[torch.nn.Module, AdamW]:
    model = torch.nn.Linear(3, 2)
    return model, AdamW(model.parameters(), lr=0.1)


def row(step: int, val_loss: float | None) -> dict:
    return {
        "step": step,
        "learning_rate": 1e-3,
        "train_loss": None,
        "val_loss": val_loss,
        "floor_nats": None,
        "val_bits_per_byte": 2.0,
        "floor_bits_per_byte": None,
        **dict.fromkeys(DOCUMENT_LOSSES, 1.5),
        "grad_norm": 0.5,
        "continuation": "ü",
    }


def evaluated(step: int, val_loss: float | None) -> Progress:
    return Progress(step, [row(step, val_loss)], [])


def saved(folder: Path, *progresses: Progress, keep: int = 2) -> Path:
    """The folder of a run that saved a checkpoint for each of `progresses`, with an optimizer step between them."""
    with Checkpoints(folder, "run", keep) as checkpoints:
        for number, progress in enumerate(progresses):
            checkpoints.save(*a_trained_pair(number), progress)
    return checkpoints.folder


def restored(folder: Path) -> Progress | None:
    with Checkpoints(folder, "run", 2) as checkpoints:
        return checkpoints.restore(*another_pair())


def test_everything_is_restored(tmp_path):
    model, optimizer = a_trained_pair()
    progress = Progress(7, [row(0, 1 / 3)], [0.1, 2e-17], skipped_steps=3)
    other, other_optimizer = a_trained_pair(3)
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        assert checkpoints.restore(model, optimizer) is None
        checkpoints.save(model, optimizer, progress)
        assert checkpoints.restore(other, other_optimizer) == progress
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert mine.equal(theirs)
        assert optimizer.state[mine]["exp_avg"].equal(other_optimizer.state[theirs]["exp_avg"])
        assert optimizer.state[mine]["exp_avg_sq"].equal(other_optimizer.state[theirs]["exp_avg_sq"])
        assert other_optimizer.state[theirs]["step"] == 1


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    model, optimizer = a_trained_pair()
    before = model.weight.detach().clone()
    progress = Progress(1, [], [0.5])
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        checkpoints.save(model, optimizer, progress)
        model.weight.data.zero_()  # training goes on
        progress.losses.append(9.0)
        other, other_optimizer = another_pair()
        assert checkpoints.restore(other, other_optimizer).losses == [0.5]
    assert other.weight.equal(before)


def test_the_newest_the_last_evaluated_and_the_best_are_kept(tmp_path):
    progresses = [
        evaluated(0, 5.0),
        evaluated(10, 1.0),
        evaluated(20, 3.0),
        *(Progress(n, [], []) for n in (21, 22, 23)),
    ]
    folder = saved(tmp_path, *progresses)
    assert sorted(path.name for path in folder.glob("step-*")) == [
        "step-00000010",
        "step-00000020",
        "step-00000022",
        "step-00000023",
    ]


def test_the_last_evaluated_one_can_be_restored(tmp_path):
    saved(tmp_path, evaluated(4, None), Progress(6, [row(4, None)], []))
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        assert checkpoints.restore(*another_pair()).step == 6
        assert checkpoints.restore(*another_pair(), evaluated=True).step == 4


DAMAGES = {
    "cut": lambda shard, index: shard.write_bytes(shard.read_bytes()[:-5]),
    "one bit": lambda shard, index: shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f"),
    "gone": lambda shard, index: shard.unlink(),
    "another file": lambda shard, index: save_file({"model.bias": torch.ones(2)}, shard.with_name("a.safetensors")),
    "index cut": lambda shard, index: index.write_bytes(index.read_bytes()[:-5]),
    "index edited": lambda shard, index: index.write_text(index.read_text().replace("0.25", "0.75")),
    "index of a list": lambda shard, index: index.write_text("[]"),
    "index that points elsewhere": lambda shard, index: index.write_text(index.read_text().replace("shard", "../../s")),
    "index without an end": lambda shard, index: index.write_text("[" * 100_000),
}


def rewrite(index: Path, section: str = "progress", **changes) -> None:
    """Change a section of an index, and its checksum with it."""
    facts = json.loads(index.read_text())
    del facts["checksum"]
    facts[section] |= changes
    index.write_text(json.dumps({**facts, "checksum": _checksum(facts)}))


def replace_by(make: Callable[[Path], None], path: Path) -> None:
    path.unlink()
    make(path)


WRONG = {
    "a step of text": {"step": "6"},
    "the step of another checkpoint": {"step": 4},
    "no history": {"history": None},
    "a history of numbers": {"history": [1, 2]},
    "an empty row": {"history": [{}]},
    "a loss of text": {"history": [row(6, "low")]},
    "another key": {"history": [{**row(6, 1.0), "speed": 1.0}]},
    "losses of text": {"losses": ["0.25"]},
    "another counter": {"skipped": 1},
    "a counter below zero": {"skipped_steps": -1},
}
DAMAGES |= {name: lambda shard, index, changes=changes: rewrite(index, **changes) for name, changes in WRONG.items()}
DAMAGES |= {
    "optimizer without steps": lambda shard, index: rewrite(index, "optimizer", weight={}),
    "optimizer of step -1": lambda shard, index: rewrite(index, "optimizer", weight={"step": -1}),
    "index that is a folder": lambda shard, index: replace_by(Path.mkdir, index),
    "index that is a pipe": lambda shard, index: replace_by(os.mkfifo, index),
    "shard that is a pipe": lambda shard, index: replace_by(os.mkfifo, shard),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_skipped(tmp_path, capsys, damage):
    folder = saved(tmp_path, Progress(4, [], []), Progress(6, [], [0.25]))
    (shard,) = (folder / "step-00000006").glob("*.safetensors")
    DAMAGES[damage](shard, folder / "step-00000006" / "index.json")
    assert restored(tmp_path).step == 4
    said = capsys.readouterr().out
    assert "step-00000006: the checkpoint is damaged (" in said
    assert said.endswith("; resuming from the previous one, of step 4\n")


def test_without_an_intact_checkpoint_a_run_starts_from_the_beginning(tmp_path, capsys):
    folder = saved(tmp_path, Progress(4, [], []))
    (folder / "step-00000004" / "index.json").write_text("{}")
    assert restored(tmp_path) is None
    assert "starting from the beginning" in capsys.readouterr().out


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    saved(tmp_path, Progress(4, [], []))
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        model = torch.nn.Linear(7, 2)
        with pytest.raises(UserError, match="step-00000004: does not fit the model"):
            checkpoints.restore(model, AdamW(model.parameters()))


class Exploding:
    """A malicious pickle: loading it calls a function."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "shard-00001-model-00001-of-00001.safetensors"])
def test_a_planted_pickle_is_never_loaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path, Progress(4, [], []), Progress(6, [], []))
    (folder / "step-00000006" / name).write_bytes(pickle.dumps(Exploding()))
    assert restored(tmp_path).step == (4 if name.endswith(".safetensors") else 6)
    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / "step-00000006" / name).read_bytes())
    assert (tmp_path / "exploded").exists()  # the pickle works


def test_a_checkpoint_that_a_kill_left_half_written_is_deleted(tmp_path):
    folder = saved(tmp_path, Progress(4, [], []), Progress(6, [], []))
    (folder / "step-00000006" / "index.json").unlink()
    assert restored(tmp_path).step == 4
    assert not (folder / "step-00000006").exists()


def test_what_is_not_a_checkpoint_is_named_and_neither_used_nor_deleted(tmp_path, capsys):
    folder = saved(tmp_path, Progress(4, [], []))
    (folder / "step-abc").mkdir()
    (folder / "step-abc" / "index.json").write_text("mine")
    (folder / "step-notes.txt").write_text("mine")
    assert restored(tmp_path).step == 4
    said = capsys.readouterr().out
    assert f"{folder}/step-abc: not a checkpoint; ignored\n" in said
    assert f"{folder}/step-notes.txt: not a checkpoint; ignored\n" in said
    assert (folder / "step-abc" / "index.json").read_text() == (folder / "step-notes.txt").read_text() == "mine"


def test_a_checkpoint_that_cannot_be_deleted_is_named_once_and_training_goes_on(tmp_path, capsys):
    folder = saved(tmp_path, Progress(4, [], []))
    (folder / "step-00000004" / "index.json").unlink()
    (folder / "step-00000004" / "index.json").mkdir()  # like an immutable file, it cannot be unlinked
    newer = saved(tmp_path, *(Progress(step, [], []) for step in (5, 6, 7)))
    assert sorted(path.name for path in newer.glob("step-*")) == ["step-00000004", "step-00000006", "step-00000007"]
    said = capsys.readouterr().out
    assert said.count("step-00000004: an old checkpoint cannot be deleted (Is a directory); delete it yourself\n") == 1
    assert restored(tmp_path).step == 7


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"/checkpoints: cannot be written \(Not a directory\)"):
        saved(tmp_path / "checkpoints")


def test_the_state_of_the_optimizer_must_be_complete(tmp_path):
    folder = saved(tmp_path, Progress(4, [], []), Progress(5, [], []))
    index = folder / "step-00000005" / "index.json"
    facts = json.loads(index.read_text())
    del facts["checksum"], facts["optimizer"]["bias"]
    index.write_text(json.dumps({**facts, "checksum": _checksum(facts)}))
    with pytest.raises(UserError, match="step-00000005: does not fit the model"):
        restored(tmp_path)


def test_the_umask_decides_who_can_read_the_files(tmp_path):
    before = os.umask(0o027)
    try:
        folder = saved(tmp_path, Progress(4, [], []))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (folder / "step-00000004").iterdir()} == {0o640}


def test_the_rows_of_the_history_are_those_of_an_evaluation(run, data):
    losses = dict.fromkeys(DOCUMENT_LOSSES, 1.5)
    made = evaluation_row(run, data, Progress(0, [], []), 1.0, losses, math.nan, "text")
    assert list(made) == list(HistoryRow.__annotations__) and made["grad_norm"] is None
    validate(list[HistoryRow], [made])


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    model, optimizer = a_trained_pair()
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        checkpoints.save(model, optimizer, Progress(4, [], []))
        checkpoints.wait()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # no file may be larger: writing fails halfway
        try:
            checkpoints.save(model, optimizer, Progress(5, [], []))
            with pytest.raises(UserError) as caught:
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert "a checkpoint cannot be written (File too large); free some space" in str(caught.value)
        assert "run again to resume from step 4" in str(caught.value)
    assert restored(tmp_path).step == 4


def test_a_step_saved_again_replaces_what_was_there(tmp_path):
    folder = saved(tmp_path, Progress(4, [], []))
    stray = folder / "step-00000004" / "shard-00002-model-00001-of-00001.safetensors"
    save_file({"model.bias": torch.ones(2)}, stray)  # as if two processes had written it
    saved(tmp_path, Progress(4, [], [0.5]))
    assert not stray.exists() and restored(tmp_path).losses == [0.5]


def test_files_are_safetensors_that_other_programs_can_read(tmp_path):
    model, _ = a_trained_pair()
    folder = saved(tmp_path, Progress(3, [], []), Progress(4, [], []))
    (shard,) = (folder / "step-00000004").glob("*.safetensors")
    assert load_file(shard)["model.weight"].equal(model.weight)
    assert set(load_file(shard)) == {
        f"{kind}{name}{key}"
        for name in ("weight", "bias")
        for kind, key in (("model.", ""), ("optimizer.", ".exp_avg"), ("optimizer.", ".exp_avg_sq"))
    }
    assert json.loads((shard.parent / "index.json").read_text())["progress"]["step"] == 4


def test_finished_runs_leave_nothing(tmp_path):
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        checkpoints.save(*a_trained_pair(), Progress(4, [], []))
        checkpoints.finish()
    assert not checkpoints.folder.exists()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Checkpoints(tmp_path / "file", "run", 2):
        pass


def test_the_fingerprint_depends_on_every_fact_and_on_the_code(monkeypatch):
    assert fingerprint(a=1) == fingerprint(a=1) != fingerprint(a=2)
    before = fingerprint(a=1)
    monkeypatch.setattr("lm.training.checkpoint.Path.read_bytes", lambda path: b"edited")
    assert fingerprint(a=1) != before
