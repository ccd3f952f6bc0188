import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.cli.main import main
from lm.studies import side_by_side
from lm.studies.side_by_side import Outcome


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of the calls of the runner, which here runs nothing."""
    made = []

    def run(folder: Path, jobs: int, num_gpus: int, report: object, *, only: str, pull: bool) -> Outcome:
        made.append((folder, jobs, num_gpus, only, pull))
        return Outcome(done=["a"]) if folder == Path(".") else Outcome(failed={"b": "error: x (log)"}, blocked=["c"])

    monkeypatch.setattr(side_by_side, "run_side_by_side", run)
    return made


def cells(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["lm", "cells", *arguments])
    try:
        main()
    except SystemExit as error:
        return error.code
    return 0


def test_the_pipeline_of_this_folder_uses_every_core_by_default(monkeypatch, calls, capsys):
    monkeypatch.setattr("lm.cli.cells._GPU_DRIVERS", ("/nowhere",))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert cells(monkeypatch) == 0
    assert calls == [(Path("."), os.cpu_count(), 0, "*", False)]
    assert capsys.readouterr().out == "stages that ran: 1\n"


def test_there_is_one_job_per_gpu_by_default(monkeypatch, calls):
    monkeypatch.setattr("lm.cli.cells._GPU_DRIVERS", ("/nowhere", "/dev/null"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    cells(monkeypatch, "--only", "cell@*", "--pull")
    assert calls == [(Path("."), 3, 3, "cell@*", True)]


def test_failed_stages_are_listed_and_the_exit_status_is_1(monkeypatch, calls, capsys):
    assert cells(monkeypatch, "studies/x", "--jobs", "4") == 1
    assert calls[0][:2] == (Path("studies/x"), 4)
    message = "error: 1 of the stages failed, 1 need them and did not run: b; run the same command again when"
    assert message in capsys.readouterr().err


def test_a_wrong_number_of_jobs_is_refused(monkeypatch, calls, capsys):
    assert cells(monkeypatch, "--jobs", "0") == 1
    assert capsys.readouterr().err == "error: --jobs: expected 1 or more, got 0\n" and not calls


def test_a_study_without_its_parameters_is_refused(tmp_path, monkeypatch, calls, capsys):
    (tmp_path / "dvc.yaml").touch()
    assert cells(monkeypatch, str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'params.yaml'}: there is no such file") and not calls
