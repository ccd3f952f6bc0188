"""The record of unfinished work, and the lock of its folder."""

import io
import json
import random
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lm import progress
from lm.errors import UserError
from lm.progress import NAME, ProgressRecord, lock_folder


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    ProgressRecord(tmp_path, "work").write({"done": 3}, {"counts": np.arange(5, dtype=np.uint64)})
    state, arrays = ProgressRecord(tmp_path, "work").read()
    assert state == {"done": 3}
    assert arrays.keys() == {"counts"} and arrays["counts"].dtype == np.uint64
    assert arrays["counts"].tolist() == [0, 1, 2, 3, 4]


def test_a_record_of_other_work_or_none_is_empty(tmp_path: Path) -> None:
    assert ProgressRecord(tmp_path, "work").read() == ({}, {})
    record = ProgressRecord(tmp_path, "work")
    record.write({"done": 3}, {})
    assert ProgressRecord(tmp_path, "other work").read() == ({}, {})
    record.delete()
    assert ProgressRecord(tmp_path, "work").read() == ({}, {})


def test_a_damaged_record_is_empty_or_unchanged(tmp_path: Path) -> None:
    record = ProgressRecord(tmp_path, "work")
    record.write({"done": 3}, {"counts": np.arange(5)})
    intact = (tmp_path / NAME).read_bytes()
    generator = random.Random(1)
    # Where a zip file says how its members are compressed and encrypted, a change is no BadZipFile.
    places = [*range(12), *range(intact.index(b"PK\x01\x02"), intact.index(b"PK\x01\x02") + 12)]
    for place in [*places, *generator.choices(range(len(intact)), k=200)]:
        damaged = bytearray(intact)
        damaged[place] ^= 1 << generator.randrange(8)
        (tmp_path / NAME).write_bytes(damaged)
        state, _ = record.read()
        assert state in ({}, {"done": 3})


@pytest.mark.parametrize("content", [[1], 7, {"identity": "work"}])
def test_a_record_of_another_form_is_empty(tmp_path: Path, content: object) -> None:
    file = io.BytesIO()
    np.savez(file, record=np.frombuffer(json.dumps(content).encode(), np.uint8))
    assert zipfile.is_zipfile(file)
    (tmp_path / NAME).write_bytes(file.getvalue())
    assert ProgressRecord(tmp_path, "work").read() == ({}, {})


def test_records_that_take_long_are_written_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    record = ProgressRecord(tmp_path, "work")

    def savez(file: object, **contents: object) -> None:
        nonlocal now
        now += 2.0

    assert not record.is_due
    now = 10.1
    assert record.is_due
    record.write({}, {})
    assert not record.is_due
    now += 10.1
    assert record.is_due
    monkeypatch.setattr(progress.np, "savez", savez)
    record.write({}, {})  # two seconds, so that 5% of the time is spent on it if the next one is 40 seconds later
    now += 39.9
    assert not record.is_due
    now += 0.2
    assert record.is_due


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new/folder"
    with (
        lock_folder(folder, "download"),
        pytest.raises(UserError, match=r"folder: another download is running in this folder; wait for it to finish$"),
        lock_folder(folder, "download"),
    ):
        pass
    with lock_folder(folder, "download"):
        pass


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(UserError, match=r"file: cannot be written \(Not a directory\)"),
        lock_folder(tmp_path / "file/cache", "download"),
    ):
        pass
