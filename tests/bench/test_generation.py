import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

KEYS = {"task", "dtype", "batch_size", "system", "tokens_per_second", "peak_mb"}


@pytest.fixture
def tiny(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's script, its laptop shape small enough for steps of milliseconds."""
    shapes = bench("shapes")
    shape = replace(shapes.SHAPES["laptop"], vocab_size=300, context_length=16, d_model=32, num_layers=2, d_ff=48)
    monkeypatch.setitem(shapes.SHAPES, "laptop", shape)
    return bench("generation")


@pytest.mark.slow
def test_systems_whose_ids_are_equal_are_measured(tiny: Any) -> None:
    runs, limits, problems = {}, {}, []
    cells = [tiny.Cell("laptop", "float32", 2)]
    job = {"device": "cpu", "seconds": 0.0}
    for _ in tiny.measure(cells, ["lm", "lm-pytorch", "transformers"], 1, job, runs, limits, problems):
        pass
    assert problems == []
    compiled, plain, theirs = (of_system[0]["ids"] for of_system in runs[cells[0]].values())
    assert compiled == plain == theirs
    assert [len(row) for row in theirs] == [15, 15]
    rows = tiny.summary(runs, limits)
    assert [row["system"] for row in rows] == ["lm", "lm-pytorch", "transformers"]
    for row in rows:
        assert row.keys() >= KEYS and row["tokens_per_second"] > 0 and row["share_of_limit"] > 0


def test_a_system_with_other_ids_or_none_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = bench("generation")

    def run_job(path: Path, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        if job["system"] == "c":
            raise script.NotMeasured("failed")
        return {"ids": [[{"a": 1, "b": 2, "d": 1}[job["system"]]]]}

    monkeypatch.setattr(script, "run_job", run_job)
    problems: list[Any] = []
    assert script.equal_systems(["c", "a", "b", "d"], {}, problems, "there") == ["a", "d"]
    assert problems == [
        script.Problem("c", "failed", "there"),
        script.Problem("b", "its ids are not those of a", "there"),
    ]


def test_figures_by_hand(bench: Any) -> None:
    script = bench("generation")
    cell = script.Cell("17m", "bfloat16", 16)
    runs = {
        cell: {
            "lm": [{"seconds": seconds, "peak_mb": 10 * seconds} for seconds in (1.0, 9.0, 2.0)],
            "transformers": [{"seconds": 4.0, "peak_mb": 90.0}],
        }
    }
    rows = script.summary(runs, {cell: 16 * 255.0})
    assert [row["tokens_per_second"] for row in rows] == [16 * 255 / 2, 16 * 255 / 4]
    assert [row["share_of_limit"] for row in rows] == [0.5, 0.25]
    lines = script.report(rows, torch.device("cpu"), []).splitlines()
    assert "| bfloat16 | 16 | 2,040 (50%) | 1,020 (25%) | 2.00 | 2.00 |" in lines
    assert "| bfloat16 | 16 | 20 | 90 |" in lines


def test_the_weights_that_a_step_reads_are_those_of_the_model_without_its_embeddings(bench: Any) -> None:
    from lm.model.transformer import TransformerLM

    shape = bench("shapes").SHAPES["laptop"]
    weights = sum(weight.numel() for weight in TransformerLM(shape.model, shape.vocab_size).parameters())
    assert bench("generation").weights_read(shape) == weights - shape.vocab_size * shape.d_model


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


@pytest.mark.slow
def test_run_c_gets_the_shape_and_says_its_rate(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "run.c").write_text(PROGRAM)
    shape = bench("shapes").SHAPES["laptop"]
    job = {"source": str(tmp_path), "dtype": "float32", "batch_size": 1, "device": "cpu", "seconds": 0.0}
    job |= {"model": asdict(shape.model), "vocab_size": 2048, "new_tokens": 15}
    result = bench("run_c").run_c(job)
    assert result["ids"] == [[96, 256, 4, 4, 4, -2048, 256, 0, 15]]
    assert result["seconds"] == 0.5 and result["generations"] == 3
    with pytest.raises(ValueError, match="one text at a time"):
        bench("run_c").run_c(job | {"batch_size": 2})


@pytest.mark.parametrize(
    "arguments", [["--batch-sizes", "0"], ["--repeats", "0"], ["--json", "/dev/null/x/rows.json"], ["--llama2c", "."]]
)
def test_a_bad_argument_gives_one_line(project: Path, arguments: list[str]) -> None:
    command = [sys.executable, project / "bench" / "generation.py", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
