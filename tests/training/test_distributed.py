"""Several processes give what one gives, whatever they share; a run goes on with another number of them."""

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
    """Each an evaluation, so that the curve holds every loss."""
    return dataclasses.replace(run, train=dataclasses.replace(run.train, max_steps=30, batch_size=8, eval_every=1))


@pytest.fixture(scope="session")
def curve(start, ended, tmp_path_factory):
    """The losses of a training, a row a step, and its folder."""

    def curve(*args, **options) -> tuple[list[list[float]], Path]:
        folder = tmp_path_factory.mktemp("curve")
        status, said, errors = ended(start(folder, *args, **options))
        assert status == 0, errors
        assert said.count("step 30, val loss") == 1  # one process speaks
        with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[1:]
        return [[float(row[name]) for name in ("train_loss", "val_loss", "grad_norm")] for row in rows], folder

    return curve


@pytest.fixture(scope="session")
def alone(curve, thirty_steps):
    return curve(1, changed=thirty_steps)


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, {}),
        pytest.param(4, {}, marks=pytest.mark.slow),
        (2, {"micro_batch_size": 3}),
        (2, {"parallelism": "fsdp", "micro_batch_size": 2, "checkpoint_activations": True}),
    ],
    ids=str,
)
def test_the_curve_is_that_of_one_process(curve, alone, thirty_steps, processes, options):
    losses, _ = curve(processes, changed=thirty_steps, **options)
    assert len(losses) == 30
    for ours, theirs in zip(losses, alone[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_muon_gives_the_same_with_shared_matrices(curve, thirty_steps):
    muon = dataclasses.replace(thirty_steps, optim=dataclasses.replace(thirty_steps.optim, optimizer="muon"))
    losses, _ = curve(2, changed=muon, parallelism="fsdp")
    for ours, theirs in zip(losses, curve(1, changed=muon)[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)  # its products are of bfloat16


def restored(folder: Path, run, vocab_size: int, tmp_path: Path) -> TransformerLM:
    """The model of the last checkpoint of a training, in this one process."""
    shutil.copytree(folder / "last", tmp_path / "run" / f"step-{run.train.max_steps:08}")
    model = TransformerLM(run.model, vocab_size)
    with Checkpoints(tmp_path, "run", 2) as checkpoints:
        assert checkpoints.restore(model, make_optimizer(model, run.optim)).step == run.train.max_steps
    return model


def test_shares_of_two_processes_are_read_by_one(curve, thirty_steps, tokenizer, tmp_path):
    _, folder = curve(2, changed=thirty_steps, parallelism="fsdp")
    shards = list(folder.glob("last/*.safetensors"))
    assert len(shards) == 2
    model = restored(folder, thirty_steps, tokenizer.vocab_size, tmp_path)
    whole = load_file(folder / "model" / "model.safetensors")
    assert all(weight.equal(whole[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(("before", "after", "parallelism"), [(2, 1, "fsdp"), (1, 2, "ddp")])
def test_a_run_goes_on_with_another_number_of_processes(
    start, ended, alone, thirty_steps, tmp_path, before, after, parallelism
):
    fault = ("mid step", 17, before - 1, "die")
    ended(start(tmp_path, before, fault, changed=thirty_steps, parallelism=parallelism))
    status, said, errors = ended(start(tmp_path, after, changed=thirty_steps, parallelism=parallelism))
    assert status == 0 and "resuming from step 1" in said, errors
    ours = load_file(tmp_path / "model" / "model.safetensors")
    theirs = load_file(alone[1] / "model" / "model.safetensors")
    assert all(weight.allclose(theirs[name], rtol=1e-4, atol=1e-5) for name, weight in ours.items())
