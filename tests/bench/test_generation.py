import argparse
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.common.jobs import NotMeasured
from bench.common.shapes import SHAPES
from bench.common.tables import Problem
from bench.generation import comparison
from bench.generation.__main__ import find_systems, main, report
from bench.generation.comparison import Case, Results, compare, equal_systems, summarize, weights_per_step
from bench.generation.run_c import run_c
from lm.errors import UserError
from lm.model.transformer import TransformerLM

KEYS = {"task", "dtype", "batch_size", "system", "tokens_per_second", "peak_mb"}


@pytest.mark.slow
def test_systems_whose_ids_are_equal_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(SHAPES["0.8m"], vocab_size=300, context_length=16, d_model=32, num_layers=2, d_ff=48)
    monkeypatch.setitem(SHAPES, "0.8m", shape)
    results, case = Results(), Case("0.8m", "float32", 2)
    job = {"device": "cpu", "seconds": 0.0, "llama2c": None}
    for _ in compare(results, [case], ["lm", "lm-pytorch", "transformers"], 1, job):
        pass
    assert results.problems == []
    fastest, plain, theirs = (of_system[0]["ids"] for of_system in results.runs[case].values())
    assert fastest == plain == theirs
    assert [len(row) for row in theirs] == [15, 15]
    rows = summarize(results)
    assert [row["system"] for row in rows] == ["lm", "lm-pytorch", "transformers"]
    for row in rows:
        assert row.keys() >= KEYS and row["tokens_per_second"] > 0 and row["share_of_limit"] > 0


def test_a_system_with_other_ids_or_none_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(module: str, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        if job["system"] == "c":
            raise NotMeasured("failed")
        return {"ids": [[{"a": 1, "b": 2, "d": 1}[job["system"]]]]}

    monkeypatch.setattr(comparison, "run_job", run_job)
    problems: list[Problem] = []
    assert equal_systems(["c", "a", "b", "d"], {}, problems, "there") == ["a", "d"]
    assert problems == [Problem("c", "failed", "there"), Problem("b", "its ids differ from those of a", "there")]


def test_results_by_hand() -> None:
    case = Case("17m", "bfloat16", 16)
    runs = {
        "lm": [{"seconds": seconds, "peak_mb": 10 * seconds} for seconds in (1.0, 9.0, 2.0)],
        "transformers": [{"seconds": 4.0, "peak_mb": 90.0}],
    }
    rows = summarize(Results(runs={case: runs}, limits={case: 16 * 255.0}))
    assert [row["tokens_per_second"] for row in rows] == [16 * 255 / 2, 16 * 255 / 4]
    assert [row["share_of_limit"] for row in rows] == [0.5, 0.25]
    lines = report(rows, torch.device("cpu"), []).splitlines()
    assert "| bfloat16 | 16 | 2,040 (50%) | 1,020 (25%) | 2.00 | 2.00 |" in lines
    assert "| bfloat16 | 16 | 20 | 90 |" in lines


def test_the_time_to_the_first_token_is_a_table_of_its_own() -> None:
    runs = {"lm": [{"seconds": 0.002, "peak_mb": 1.0}], "llama.cpp": [{"seconds": 0.003, "peak_mb": 1.0}]}
    case = Case("17m", "int8", 1, prompt_tokens=1024)
    assert case.model.context_length == 1025
    lines = report(summarize(Results(runs={case: runs}, limits={case: 1e3})), torch.device("cpu"), []).splitlines()
    assert "| int8 | 1024 | 2.0 | 3.0 | 1.50 |" in lines


def test_a_library_that_is_not_installed_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.generation.__main__.version_of", lambda name: None if "llama" in name else "1")
    problems: list[Problem] = []
    args = argparse.Namespace(systems=["lm", "llama.cpp", "run.c"], quick=False, llama2c=None)
    assert find_systems(args, problems) == ["lm"]
    assert problems == [Problem("llama.cpp", "llama-cpp-python is not installed"), Problem("run.c", "no --llama2c")]


def test_a_step_reads_all_weights_except_the_embeddings() -> None:
    shape = SHAPES["0.8m"]
    weights = sum(weight.numel() for weight in TransformerLM(shape.model, shape.vocab_size).parameters())
    assert weights_per_step(shape) == weights - shape.vocab_size * shape.d_model


PROGRAM = """
#include <stdio.h>
int main(int count, char **words) {
    int shape[7];
    fread(shape, sizeof(int), 7, fopen(words[1], "rb"));
    for (int i = 0; i < 7; i++) printf("%d,", shape[i]);
    printf("%s,%s,", words[5], words[7]);
    fprintf(stderr, "achieved tok/s: 30.0\\n");
}
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="run.c is built with gcc and OpenMP")
def test_run_c_gets_the_shape_and_reports_its_speed(tmp_path: Path) -> None:
    (tmp_path / "run.c").write_text(PROGRAM)
    shape = SHAPES["0.8m"]
    job = {"llama2c": str(tmp_path), "dtype": "float32", "batch_size": 1, "device": "cpu", "seconds": 0.0}
    job |= {"prompt_tokens": 1}
    job |= {"model": asdict(shape.model), "vocab_size": 2048, "new_tokens": 15}
    result = run_c(job)
    assert result["ids"] == [[96, 256, 4, 4, 4, -2048, 256, 0, 15]]
    assert result["seconds"] == 0.5 and result["generations"] == 3
    with pytest.raises(ValueError, match="one text at a time"):
        run_c(job | {"batch_size": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "0"], "--batch-sizes: expected 1 or more, got 0"),
        (["--prompts", "1"], "--prompts: expected 2 or more tokens, got 1"),
        (["--repeats", "0"], "--repeats: expected 1 or more, got 0"),
        (["--json", "/dev/null/x/rows.json"], "/dev/null: cannot be written"),
        (["--llama2c", "nowhere"], "--llama2c: nowhere: expected the folder of a checkout"),
    ],
)
def test_a_bad_argument_gives_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.generation", *arguments])
    with pytest.raises(UserError, match=message):
        main()
