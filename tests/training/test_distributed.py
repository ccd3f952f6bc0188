"""Several processes give the results of one, replicated or sharded; a run resumes with another number of processes."""

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lm.model.transformer import TransformerLM
from lm.training.checkpoint import Checkpoints
from lm.training.optimizer import make_optimizer


@pytest.fixture(scope="session")
def thirty_steps(run):
    """A run with an evaluation at every step, so that the curve contains every loss."""
    return dataclasses.replace(run, train=dataclasses.replace(run.train, max_steps=30, batch_size=8, eval_every=1))


@pytest.fixture(scope="session")
def curve(start, ended, tmp_path_factory):
    """Train; returns the losses, one row per step, and the folder of the training."""

    def curve(*args, **options) -> tuple[list[list[float]], Path]:
        folder = tmp_path_factory.mktemp("curve")
        status, said, errors = ended(start(folder, *args, **options))
        assert status == 0, errors
        assert said.count("step 30, val loss") == 1  # only one process prints
        with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[1:]
        return [[float(row[name]) for name in ("train_loss", "val_loss", "grad_norm")] for row in rows], folder

    return curve


@pytest.fixture(scope="session")
def one_process(curve, thirty_steps):
    return curve(1, changed=thirty_steps)


@pytest.fixture(scope="session")
def sharded(curve, thirty_steps):
    options = {"parallelism": "fsdp", "micro_batch_size": 2, "checkpoint_activations": True}
    return curve(2, changed=thirty_steps, **options)


def assert_close(losses: list[list[float]], expected: list[list[float]], rel: float) -> None:
    assert len(losses) == 30
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=rel)


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        pytest.param(2, {}, marks=pytest.mark.slow),
        pytest.param(4, {}, marks=pytest.mark.slow),
        (2, {"micro_batch_size": 3}),
    ],
    ids=str,
)
def test_the_curve_is_that_of_one_process(curve, one_process, thirty_steps, processes, options):
    losses, _ = curve(processes, changed=thirty_steps, **options)
    assert_close(losses, one_process[0], rel=1e-5)


def test_the_curve_of_sharded_processes_is_that_of_one_process(sharded, one_process):
    assert_close(sharded[0], one_process[0], rel=1e-5)


@pytest.mark.slow
def test_muon_gives_the_same_with_sharded_matrices(curve, thirty_steps):
    muon = dataclasses.replace(thirty_steps, optim=dataclasses.replace(thirty_steps.optim, optimizer="muon"))
    losses, _ = curve(2, changed=muon, parallelism="fsdp")
    assert_close(losses, curve(1, changed=muon)[0], rel=1e-3)  # its products are in bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rel"), [("adamw", 1e-5), ("muon", 1e-3)])
def test_sharded_canon_layers_and_cautious_decay_give_the_same(curve, thirty_steps, optimizer, rel):
    changed = dataclasses.replace(
        thirty_steps,
        model=dataclasses.replace(thirty_steps.model, canon=True),
        optim=dataclasses.replace(thirty_steps.optim, optimizer=optimizer, cautious_weight_decay=True),
    )
    losses, _ = curve(2, changed=changed, parallelism="fsdp", micro_batch_size=2, checkpoint_activations=True)
    assert_close(losses, curve(1, changed=changed)[0], rel=rel)


def restored(folder: Path, run, vocab_size: int, tmp_path: Path) -> TransformerLM:
    """The model in the last checkpoint of a training, loaded by this one process."""
    shutil.copytree(folder / "last", tmp_path / "run" / f"step-{run.train.max_steps:08}")
    model = TransformerLM(run.model, vocab_size)
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        assert checkpoints.restore(model, make_optimizer(model, run.optim)).step == run.train.max_steps
    return model


def test_the_shards_of_two_processes_are_read_by_one(sharded, thirty_steps, tokenizer, tmp_path):
    _, folder = sharded
    assert len(list(folder.glob("last/*.safetensors"))) == 2
    model = restored(folder, thirty_steps, tokenizer.vocab_size, tmp_path)
    full = load_file(folder / "model" / "model.safetensors")
    assert all(weight.equal(full[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("before", "after", "parallelism"), [(2, 1, "fsdp"), pytest.param(1, 2, "ddp", marks=pytest.mark.slow)]
)
def test_a_run_resumes_with_another_number_of_processes(
    start, ended, one_process, thirty_steps, tmp_path, before, after, parallelism
):
    fault = ("mid step", 17, before - 1, "die")
    ended(start(tmp_path, before, fault, changed=thirty_steps, parallelism=parallelism))
    status, said, errors = ended(start(tmp_path, after, changed=thirty_steps, parallelism=parallelism))
    assert status == 0 and "resuming from step 1" in said, errors
    ours = load_file(tmp_path / "model" / "model.safetensors")
    theirs = load_file(one_process[1] / "model" / "model.safetensors")
    assert all(weight.allclose(theirs[name], rtol=1e-4, atol=1e-5) for name, weight in ours.items())
