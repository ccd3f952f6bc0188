import sys
from contextlib import suppress
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lm.cli.main import main


@pytest.fixture
def plan(project, tmp_path, monkeypatch, capsys):
    """Run `lm plan` on params.yaml with changed values; returns what it prints, and its errors."""
    monkeypatch.chdir(tmp_path)

    def plan(*arguments: str, **changes) -> tuple[str, str]:
        yaml = YAML()
        params = yaml.load(project / "params.yaml")
        for section, values in changes.items():
            params[section] |= values
        yaml.dump(params, Path("params.yaml"))
        monkeypatch.setattr(sys, "argv", ["lm", "plan", *arguments])
        with suppress(SystemExit):
            main()
        return capsys.readouterr()

    return plan


TINY = {"model": {"d_model": 8, "num_layers": 1, "d_ff": 8, "context_length": 8}}


def test_a_run_that_fits_is_planned_and_nothing_is_written(plan, tmp_path):
    said, errors = plan(**TINY, train={"batch_size": 1, "max_steps": 30})
    assert said.splitlines()[-1].startswith("time: ") and not errors
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": {"tracking": "wandb"}}, "runtime.tracking: wandb is not installed; run pip install wandb"),
        ({"train": {"initial_model": "no\nwhere"}}, "train.initial_model: expected none or the folder of a model, got"),
        ({"train": {"initial_model": "."}}, "train.initial_model: config.json: there is no such file"),
        ({"runtime": {"device": "mps"}}, "runtime.device: mps is not available on this machine"),
    ],
)
def test_what_would_fail_in_training_is_refused_before_anything_is_measured(plan, monkeypatch, changes, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said, errors = plan(**changes)
    assert errors.startswith(f"error: {message}") and len(errors.splitlines()) == 1 and not said


@pytest.mark.parametrize("folder", ["params.yaml", "params.yaml/checkpoints"])
def test_checkpoints_that_cannot_be_written_are_refused(plan, folder):
    said, errors = plan("--checkpoints", folder)
    assert errors.startswith("error: params.yaml: cannot be written (") and not said


def test_a_run_is_planned_for_a_device_that_is_not_here(plan, tmp_path):
    said, errors = plan("--device", "h100", **TINY, runtime={"device": "mps", "num_processes": 4, "tracking": "wandb"})
    assert not errors and [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    table, _, time = said.partition("time on ")
    assert "GPU total, of 72 GB available" in table and "CPU total" not in table and "free" not in table
    assert time.startswith("4 x NVIDIA H100 SXM, planned, not measured: about ")
    assert "tokens per second" in time and "launches is the largest term" in time
    assert "assumes 40% of the peak of 67 TFLOP/s in float32, 3.35 TB/s of memory bandwidth, and 10 µs" in time


def test_a_run_that_does_not_fit_the_device_is_refused_with_what_does(plan):
    said, errors = plan("--device", "t4", train={"batch_size": 4096}, runtime={"micro_batch_size": 4096})
    assert "of 14.4 GB available" in said and "time on" not in said
    assert errors.startswith("error: runtime.micro_batch_size: with 4096, a process needs ")
    assert "of GPU memory, but 14.4 GB are available; set runtime.micro_batch_size: " in errors


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("t4", "train.precision: Tesla T4 does not support bfloat16; use float32"),
        ("tpu", "--device: expected one of cpu-2, cpu-8, t4, rtx-4090, "),
    ],
)
def test_what_a_device_cannot_do_is_one_line(plan, device, message):
    said, errors = plan("--device", device, train={"precision": "bfloat16"})
    assert errors.startswith(f"error: {message}") and len(errors.splitlines()) == 1 and not said
