import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.common import models
from bench.common.jobs import NotMeasured
from bench.common.models import SYSTEMS, Lm
from bench.common.shapes import OPTIM, SHAPES, Shape
from bench.training import comparison
from bench.training.__main__ import main
from bench.training.comparison import Case, Results, Setup, check_first_loss, compare, summarize
from bench.training.report import report
from bench.training.step import make_step
from lm.errors import UserError

KEYS = "task shape dtype compile batch_size allocator system tokens_per_second mfu peak_mb"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Shape:
    """The shape 0.8m, made small enough for steps of milliseconds."""
    shape = replace(SHAPES["0.8m"], vocab_size=500, context_length=16, d_model=32, num_layers=2, d_ff=48)
    monkeypatch.setitem(SHAPES, "0.8m", shape)
    return shape


@pytest.mark.slow
def test_the_same_weights_start_at_the_same_loss_and_a_system_that_fails_is_listed(
    tiny: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(1).integers(500, size=2000, dtype=np.uint16))
    monkeypatch.setitem(models._ATTENTIONS, "cpu", {})  # only sdpa
    (tmp_path / "model.py").write_text("raise ImportError('no such thing')\n")
    results = Results()
    job = {"device": "cpu", "tokens": str(tokens), "seconds": 0.0}
    checkouts = {"lm": None, "nanogpt": tmp_path, "transformers": None}
    for _ in compare(results, [Case("0.8m", "float32", False, 2)], checkouts, ["default"], 1, job):
        pass
    rows = summarize(results, ["default"])
    text = report(rows, {"float32": 1e9}, torch.device("cpu"), results.problems)
    assert text.endswith(
        "Not measured:\n\n- nanogpt: failed with exit status 1: ImportError: no such thing "
        "(0.8m, float32, eager, batch size 2, sdpa attention)"
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


def test_our_step_does_what_the_step_of_the_others_does(tiny: Shape) -> None:
    """Ten steps of two implementations of model, loss, clipping and AdamW, from the same weights."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(500, size=(2, 17)))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    losses = []
    for name in ("lm", "transformers"):
        system = SYSTEMS[name](tiny.model, tiny.vocab_size, "sdpa")
        if name != "lm":
            system.load_weights(Lm(tiny.model, tiny.vocab_size).model)
        step = make_step(system, OPTIM, "float32", torch.device("cpu"), compiled=False)
        losses.append([float(step(inputs, targets, 3e-3)) for _ in range(10)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.3


def run(seconds: float, loss: float = math.log(2048)) -> dict[str, Any]:
    return {
        "seconds_per_step": seconds,
        "first_step_seconds": 9.0,
        "first_loss": loss,
        "parameters": 836_448,
        "peak_mb": 100 * seconds,
    }


def test_results_are_medians_and_the_ratio_is_to_the_fastest_other() -> None:
    case = Case("0.8m", "float32", False, 8)  # a step has 8 * 256 = 2048 tokens
    runs = {
        Setup("lm", "tuned", "reference"): [run(4.0)],
        Setup("lm", "tuned", "sdpa"): [run(1.0), run(8.0), run(2.0)],
        Setup("transformers", "default", "sdpa"): [run(8.0)],
        Setup("transformers", "tuned", "sdpa"): [run(4.0)],
        Setup("nanogpt", "default", "sdpa"): [run(16.0)],
    }
    flops = 6 * (4 * (4 * 96**2 + 3 * 96 * 256) + 2048 * 96) + 12 * 4 * 96 * 256  # per token
    rows = summarize(Results(runs={case: runs}, peak_flops={"float32": 10_000.0 * flops}), ["default", "tuned"])
    speeds = {(row["allocator"], row["system"]): row["tokens_per_second"] for row in rows}
    assert speeds == {
        ("default", "lm"): 1024.0,
        ("tuned", "lm"): 1024.0,
        ("default", "transformers"): 256.0,
        ("tuned", "transformers"): 512.0,
        ("default", "nanogpt"): 128.0,
    }
    assert rows[0]["attention"] == "sdpa"
    assert rows[0]["tokens_per_second_by_attention"] == {"reference": 512, "sdpa": 1024}
    lines = report(rows, {"float32": 1e9}, torch.device("cpu"), []).splitlines()
    assert "| float32 | False | 8 | default | 1,024 (10%) | 256 (3%) | 128 (1%) | 4.00 |" in lines
    assert "| float32 | False | 8 | tuned | 1,024 (10%) | 512 (5%) | - | 2.00 |" in lines
    assert "| float32 | False | 8 | tuned | 200 | 400 | - |" in lines


@pytest.mark.parametrize(
    ("system", "loss", "reason"),
    [("nanogpt", 8.3, "far from ln"), ("litgpt", math.nan, "far from ln"), ("transformers", 7.6248, "ours with")],
)
def test_a_first_loss_that_differs_is_an_error(system: str, loss: float, reason: str) -> None:
    ours = {Setup("lm", "tuned", "sdpa"): [run(1.0)]}
    setup = Setup(system, "tuned", "sdpa")
    with pytest.raises(NotMeasured, match=reason):
        check_first_loss(run(1.0, loss), setup, ours, "float32", 2048)
    check_first_loss(run(1.0, math.log(2048) + 5e-5), setup, ours, "float32", 2048)
    check_first_loss(run(1.0, math.log(2048) + 5e-5), setup, {}, "float32", 2048)


def test_each_attention_is_tried_once_and_the_fastest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def train(job: dict[str, Any], checkout: Path | None) -> dict[str, Any]:
        order.append((job["system"], job["allocator"], job["attention"]))
        return run({"eager": 1.0, "flash": 3.0, "sdpa": 2.0}[job["attention"]])

    monkeypatch.setattr(comparison, "train", train)
    monkeypatch.setattr(comparison, "run_job", lambda *arguments: {"flops_per_second": 1e9})
    results, checkouts = Results(), {"lm": None, "transformers": None}
    cases = [Case("0.8m", "float32", False, 8)]
    for _ in compare(results, cases, checkouts, ["default", "tuned"], 2, {"device": "cpu"}):
        pass
    assert order == [
        ("lm", "tuned", "flash"),
        ("lm", "tuned", "sdpa"),
        ("transformers", "default", "sdpa"),
        ("transformers", "default", "eager"),
        ("transformers", "tuned", "eager"),
        ("lm", "tuned", "sdpa"),
        ("transformers", "default", "eager"),
        ("transformers", "tuned", "eager"),
    ]
    assert results.peak_flops == {"float32": 1e9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nanogpt", "nowhere"], "--nanogpt: nowhere: expected the folder of a checkout"),
        (["--batch-sizes", "0"], "--batch-sizes: expected 1 or more, got 0"),
        (["--json", "/dev/null/x/rows.json"], "/dev/null: cannot be written"),
    ],
)
def test_a_bad_argument_gives_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.training", *arguments])
    with pytest.raises(UserError, match=message):
        main()
