"""`make` tells DVC that there is no version control only where there is none."""

import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
REFUSES = "#!/bin/sh\necho 'fatal: detected dubious ownership in repository' >&2\nexit 128\n"


@pytest.mark.parametrize(("has_git_folder", "written"), [(True, False), (False, True)])
def test_only_a_copy_without_a_git_folder_is_without_git(tmp_path, has_git_folder, written):
    (tmp_path / "Makefile").write_bytes((PROJECT / "Makefile").read_bytes())
    programs = tmp_path / ".venv/bin"
    for folder in (programs, tmp_path / ".dvc", *([tmp_path / ".git"] if has_git_folder else [])):
        folder.mkdir(parents=True)
    for name, script in (("git", REFUSES), ("dvc", "#!/bin/sh\n"), ("lm", "#!/bin/sh\n")):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):  # in this order, so that nothing is installed
        (tmp_path / name).touch()
    subprocess.run(["make"], cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "MAKEFLAGS": ""})
    local = tmp_path / ".dvc/config.local"
    assert local.exists() == written
    assert not written or local.read_text() == "[core]\n    no_scm = true\n"
