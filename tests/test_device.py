import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm.device import check_precision, pick_device, why_not_compile
from lm.errors import UserError


def test_auto_picks_the_best_available_device(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"


def test_a_device_that_is_not_available_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="runtime.device: cuda is not available"):
        pick_device("cuda")


def test_bfloat16_is_refused_on_an_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UserError, match="train.precision: Tesla T4 does not support bfloat16; use float32"):
        check_precision(torch.device("cuda"), "bfloat16")
    check_precision(torch.device("cuda"), "float32")
    check_precision(torch.device("cpu"), "bfloat16")


def test_the_reason_not_to_compile_is_returned(monkeypatch):
    assert "MPS" in why_not_compile(torch.device("mps"))

    def broken(function):
        raise RuntimeError("no C++ compiler found\nand so on")

    monkeypatch.setattr(torch, "compile", broken)
    assert why_not_compile(torch.device("cpu")) == "no C++ compiler found"


@pytest.mark.slow  # imports the compiler of PyTorch
def test_a_machine_without_a_compiler_of_cpp_is_one_line(tmp_path):
    program = "import torch, lm.device; print(lm.device.why_not_compile(torch.device('cpu')))"
    environment = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.count("\n") == 1 and "compiler" in said.lower()
