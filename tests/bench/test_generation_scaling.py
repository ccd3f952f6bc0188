import importlib.util
from typing import Any

import pytest
import torch

from bench.common.jobs import NotMeasured
from bench.common.shapes import SHAPES
from bench.common.tables import Problem
from bench.generation import scaling
from bench.generation.systems import LIBRARIES


def test_the_time_of_the_prompt_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(module: str, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert job["prompt_tokens"] + 33 == job["model"]["context_length"] == 256
        if job["system"] == "llama.cpp":
            raise NotMeasured("failed")
        return {"seconds": {1: 3.0, 33: 3.5}[job["new_tokens"]]}

    monkeypatch.setattr(scaling, "run_job", run_job)
    problems: list[Problem] = []
    rows = scaling.measure(["lm", "llama.cpp"], "17m", 256, "int8", 2, problems)
    assert [(row["system"], row["tokens_per_second"]) for row in rows] == [("lm", 64.0)]
    assert {problem.system for problem in problems} == {"llama.cpp"}
    theirs = rows[0] | {"system": "llama.cpp", "tokens_per_second": 32.0}
    assert "| 17m | 256 | 64 | 32 | 2.00 |" in scaling.report([*rows, theirs], []).splitlines()


@pytest.mark.slow  # it loads three libraries
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_continues_with_the_same_tokens() -> None:
    shape, device = SHAPES["0.8m"], torch.device("cpu")
    prompts = [[1, 2, 3], [4, 5]]
    ours, theirs = (
        LIBRARIES[name](shape.model, shape.vocab_size, "float32", device)(prompts, 8) for name in ("lm", "llama.cpp")
    )
    assert ours == theirs
