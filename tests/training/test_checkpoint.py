import pytest
import torch
from safetensors.torch import save_file

from lm.errors import UserError
from lm.training.checkpoint import Checkpoints, Progress, fingerprint
from lm.training.optimizer import AdamW


def a_trained_pair() -> tuple[torch.nn.Module, AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_everything_comes_back(tmp_path):
    model, optimizer = a_trained_pair()
    progress = Progress(step=7, history=[{"step": 0, "val_loss": 1 / 3, "continuation": "ü"}], losses=[0.1, 2e-17])
    with Checkpoints(tmp_path, "run") as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(checkpoints.newest, model, optimizer, progress)
        expected_random = torch.rand(3)
        other = torch.nn.Linear(3, 2)
        other_optimizer = AdamW(other.parameters(), lr=0.5)
        assert checkpoints.restore(checkpoints.latest(), other, other_optimizer) == progress
    assert torch.rand(3).equal(expected_random)
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert mine.equal(theirs)
        assert optimizer.state[mine]["exp_avg"].equal(other_optimizer.state[theirs]["exp_avg"])
        assert optimizer.state[mine]["exp_avg_sq"].equal(other_optimizer.state[theirs]["exp_avg_sq"])
        assert other_optimizer.state[theirs]["step"] == 1
    assert other_optimizer.param_groups[0]["lr"] == 0.1


def test_the_latest_is_the_one_that_has_come_furthest(tmp_path):
    model, optimizer = a_trained_pair()
    with Checkpoints(tmp_path, "run") as checkpoints:
        checkpoints.save(checkpoints.evaluated, model, optimizer, Progress(4, [], []))
        checkpoints.save(checkpoints.newest, model, optimizer, Progress(6, [], []))
        assert checkpoints.latest() == checkpoints.newest
        checkpoints.save(checkpoints.evaluated, model, optimizer, Progress(8, [], []))
        assert checkpoints.latest() == checkpoints.evaluated


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    model, optimizer = a_trained_pair()
    with Checkpoints(tmp_path, "run") as checkpoints:
        checkpoints.save(checkpoints.newest, model, optimizer, Progress(4, [], []))
        before = checkpoints.newest.read_bytes()

        def full(tensors, path, metadata):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("lm.model.files.save_file", full)
        with pytest.raises(UserError, match="newest.safetensors: cannot be written .*No space left.*free some space"):
            checkpoints.save(checkpoints.newest, model, optimizer, Progress(5, [], []))
        assert checkpoints.newest.read_bytes() == before
        assert not list(checkpoints.folder.glob("*.part"))


@pytest.mark.parametrize("damage", ["cut", "garbage", "foreign", "pickle"])
def test_a_damaged_file_is_named_and_never_unpickled(tmp_path, damage):
    model, optimizer = a_trained_pair()
    with Checkpoints(tmp_path, "run") as checkpoints:
        checkpoints.save(checkpoints.newest, model, optimizer, Progress(4, [], []))
        whole = checkpoints.newest.read_bytes()
        if damage == "foreign":
            save_file({"other": torch.zeros(2)}, checkpoints.newest)
        elif damage == "pickle":
            torch.save(model.state_dict(), checkpoints.newest)
        else:
            checkpoints.newest.write_bytes(whole[:-5] if damage == "cut" else b"\xff" * 100)
        with pytest.raises(UserError, match="newest.safetensors: the checkpoint is damaged"):
            checkpoints.restore(checkpoints.newest, model, optimizer)
        with pytest.raises(UserError, match="newest.safetensors: the checkpoint is damaged"):
            checkpoints.latest()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        with Checkpoints(tmp_path / "file", "run"):
            pass


def test_the_fingerprint_depends_on_every_fact_and_on_the_code(monkeypatch):
    assert fingerprint(a=1) == fingerprint(a=1) != fingerprint(a=2)
    before = fingerprint(a=1)
    monkeypatch.setattr("lm.training.checkpoint.Path.read_bytes", lambda path: b"edited")
    assert fingerprint(a=1) != before
