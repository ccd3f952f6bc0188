import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lm import config

KEYS = "task shape dtype compile batch_size allocator system tokens_per_second mfu peak_mb"


@pytest.fixture
def tiny(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's script, its laptop shape small enough for steps of milliseconds."""
    shapes = bench("shapes")
    shape = replace(shapes.SHAPES["laptop"], vocab_size=500, context_length=16, d_model=32, num_layers=2, d_ff=48)
    monkeypatch.setitem(shapes.SHAPES, "laptop", shape)
    return bench("training")


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "tokens.npy"
    np.save(path, np.random.default_rng(1).integers(500, size=2000, dtype=np.uint16))
    return {"device": "cpu", "tokens": str(path), "seconds": 0.0}


def measured(script: Any, job: dict[str, Any], systems: dict[str, Path | None], **cell: Any) -> tuple[Any, Any]:
    """The rows and the problems of one cell, each system measured once with its first attention."""
    runs, peaks, problems = {}, {}, []
    cells = [script.Cell(**{"shape": "laptop", "dtype": "float32", "compile": False, "batch_size": 2} | cell)]
    for _ in script.measure(cells, systems, ["default"], 1, job, runs, peaks, problems):
        pass
    return script.summary(runs, peaks, ["default"]), problems


@pytest.mark.slow
def test_the_same_weights_start_at_the_same_loss_and_a_system_that_fails_is_named(
    tiny: Any, bench: Any, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lm", "transformers"):
        monkeypatch.setattr(bench("learners").SYSTEMS[name], "attentions", {"cpu": ("sdpa",)})
    (tmp_path / "model.py").write_text("raise ImportError('no such thing')\n")
    rows, problems = measured(tiny, job, {"lm": None, "nanogpt": tmp_path, "transformers": None})
    text = tiny.report(rows, {"float32": 1e9}, torch.device("cpu"), problems)
    assert text.endswith(
        "Not measured:\n\n- nanogpt: failed, exit status 1: ImportError: no such thing "
        "(laptop, float32, eager, batch size 2, sdpa attention)"
    )
    ours, theirs = rows
    assert set(KEYS.split()) <= ours.keys() == theirs.keys()
    assert (ours["system"], theirs["system"]) == ("lm", "transformers")
    assert ours["parameters"] == theirs["parameters"] == 2 * 500 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48) + 5 * 32
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-4)
    assert abs(ours["first_loss"] - math.log(500)) < 0.3
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(2 * 16 / row["seconds_per_step"])
        assert 0 < row["mfu"] < 1


def test_a_step_of_ours_is_that_of_the_others(tiny: Any, bench: Any) -> None:
    """Ten steps of two implementations of model, loss, clipping and AdamW, from the same weights."""
    learners, shapes = bench("learners"), bench("shapes")
    shape = shapes.SHAPES["laptop"]
    ids = torch.from_numpy(np.random.default_rng(1).integers(500, size=(2, 17)))
    losses = []
    for name in ("lm", "transformers"):
        system = learners.SYSTEMS[name](shape.model, shape.vocab_size, "sdpa", None)
        if name != "lm":
            system.start_from(learners.Lm(shape.model, shape.vocab_size, "sdpa", None).model.state_dict())
        step = learners.make_step(system, shapes.OPTIM, "float32", torch.device("cpu"), compiled=False)
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        losses.append([float(step(inputs, targets, 3e-3)) for _ in range(10)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.3


def test_the_laptop_shape_is_that_of_the_released_parameters(bench: Any, project: Path) -> None:
    params, shape = config.load(project / "params.yaml"), bench("shapes").SHAPES["laptop"]
    assert (shape.model, shape.vocab_size) == (params.model, params.tokenizer.vocab_size)


def run(seconds: float, loss: float = math.log(2048)) -> dict[str, Any]:
    return {
        "seconds_per_step": seconds,
        "first_step_seconds": 9.0,
        "first_loss": loss,
        "parameters": 836_448,
        "peak_mb": 100 * seconds,
    }


def test_figures_are_medians_and_the_ratio_is_to_the_fastest_other(bench: Any) -> None:
    script = bench("training")
    cell = script.Cell("laptop", "float32", False, 8)  # a step has 8 * 256 = 2048 tokens
    runs = {
        cell: {
            script.Setup("lm", "tuned", "reference"): [run(4.0)],
            script.Setup("lm", "tuned", "sdpa"): [run(1.0), run(8.0), run(2.0)],
            script.Setup("transformers", "default", "sdpa"): [run(8.0)],
            script.Setup("transformers", "tuned", "sdpa"): [run(4.0)],
            script.Setup("nanogpt", "default", "sdpa"): [run(16.0)],
        }
    }
    flops = 6 * (4 * (4 * 96**2 + 3 * 96 * 256) + 2048 * 96) + 12 * 4 * 96 * 256  # a token
    rows = script.summary(runs, {"float32": 10_000.0 * flops}, ["default", "tuned"])
    figures = {(row["allocator"], row["system"]): row["tokens_per_second"] for row in rows}
    assert figures == {
        ("default", "lm"): 1024.0,
        ("tuned", "lm"): 1024.0,
        ("default", "transformers"): 256.0,
        ("tuned", "transformers"): 512.0,
        ("default", "nanogpt"): 128.0,
    }
    assert rows[0]["attention"] == "sdpa"
    assert rows[0]["tokens_per_second_by_attention"] == {"reference": 512, "sdpa": 1024}
    lines = script.report(rows, {"float32": 1e9}, torch.device("cpu"), []).splitlines()
    assert "| float32 | False | 8 | default | 1,024 (10%) | 256 (3%) | 128 (1%) | 4.00 |" in lines
    assert "| float32 | False | 8 | tuned | 1,024 (10%) | 512 (5%) | - | 2.00 |" in lines
    assert "| float32 | False | 8 | tuned | 200 | 400 | - |" in lines


@pytest.mark.parametrize(
    ("system", "loss", "reason"),
    [("nanogpt", 8.3, "far from ln"), ("litgpt", math.nan, "far from ln"), ("transformers", 7.6248, "ours with")],
)
def test_a_first_loss_that_differs_is_refused(bench: Any, system: str, loss: float, reason: str) -> None:
    script = bench("training")
    ours = {script.Setup("lm", "tuned", "sdpa"): [run(1.0)]}
    setup = script.Setup(system, "tuned", "sdpa")
    with pytest.raises(script.NotMeasured, match=reason):
        script.check_start(run(1.0, loss), setup, ours, "float32", 2048)
    script.check_start(run(1.0, math.log(2048) + 5e-5), setup, ours, "float32", 2048)
    script.check_start(run(1.0, math.log(2048) + 5e-5), setup, {}, "float32", 2048)


def test_each_attention_is_tried_once_and_the_fastest_goes_on(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = bench("training")
    order = []

    def train(job: dict[str, Any], path: Path | None) -> dict[str, Any]:
        order.append((job["system"], job["allocator"], job["attention"]))
        return run({"eager": 1.0, "sdpa": 2.0, "reference": 3.0}[job["attention"]])

    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(script, "run_job", lambda *arguments: {"flops": 1e9})
    peaks: dict[str, float] = {}
    cells = [script.Cell("laptop", "float32", False, 8)]
    systems = {"lm": None, "transformers": None}
    for _ in script.measure(cells, systems, ["default", "tuned"], 2, {"device": "cpu"}, {}, peaks, []):
        pass
    assert order == [
        ("lm", "tuned", "reference"),
        ("lm", "tuned", "sdpa"),
        ("transformers", "default", "sdpa"),
        ("transformers", "default", "eager"),
        ("transformers", "tuned", "eager"),
        ("lm", "tuned", "sdpa"),
        ("transformers", "default", "eager"),
        ("transformers", "tuned", "eager"),
    ]
    assert peaks == {"float32": 1e9}


@pytest.mark.parametrize(
    "arguments",
    [["--nanogpt", "nowhere"], ["--litgpt", "nowhere"], ["--batch-sizes", "0"], ["--json", "/dev/null/x/rows.json"]],
)
def test_a_bad_argument_gives_one_line(project: Path, arguments: list[str]) -> None:
    command = [sys.executable, project / "bench" / "training.py", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
