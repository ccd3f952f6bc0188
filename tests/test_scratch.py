"""Folders for temporary files."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lm.scratch import scratch_folder

HOLD = """
import os, sys
from lm.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "file").write_bytes(b"text")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def age(folder: Path) -> None:
    """Let a folder look as if it were two minutes old."""
    then = time.time() - 120
    os.utime(folder, (then, then))


def test_a_folder_exists_until_the_block_ends(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        (folder / "file").write_bytes(b"text")
        with scratch_folder() as other:
            assert other != folder and folder.parent == other.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_process_that_was_killed_is_deleted_by_the_next(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        age(folder)
        with scratch_folder():
            assert (folder / "file").exists()  # its process is alive
        process.send_signal(signal.SIGKILL)
        process.wait()
    with scratch_folder():
        assert folder.exists() is False


def test_a_folder_that_has_just_been_created_is_kept(tmp_path: Path) -> None:
    new = tmp_path / "lm-scratch-new"  # its process has not locked it yet
    new.mkdir()
    with scratch_folder():
        assert new.exists()
    age(new)
    with scratch_folder():
        assert not new.exists()
