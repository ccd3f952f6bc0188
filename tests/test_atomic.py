import errno
import os
import resource

import pytest

from lm.atomic import (
    atomic_write,
    check_folder,
    make_folder,
    require_new_folder,
    translate_write_errors,
    write_json,
    write_text,
)
from lm.errors import UserError


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [UserError("stop"), KeyboardInterrupt()])
def test_an_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_larger_than_the_limit_is_reported_as_a_full_disk(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with (
            pytest.raises(UserError, match=r"a\.txt: the disk is full \(File too large\); free some space"),
            atomic_write(tmp_path / "a.txt") as file,
        ):
            file.write(bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path, number):
    with pytest.raises(UserError, match=r"a\.txt: the disk is full \("), translate_write_errors(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))


def test_folders_that_are_not_writable(tmp_path, monkeypatch):
    make_folder(tmp_path / "a/b")
    make_folder(tmp_path / "a/b")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file: cannot be written \(File exists\)"):
        make_folder(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # because root may write anywhere
    with pytest.raises(UserError, match=r"b: cannot be written \(Permission denied\); check the path"):
        make_folder(tmp_path / "a/b")


def test_the_parent_that_is_not_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for check in (make_folder, check_folder, require_new_folder):
        with pytest.raises(UserError, match=r"/file: cannot be written \(Not a directory\)"):
            check(tmp_path / "file/a/b")


def test_a_folder_is_checked_without_being_created(tmp_path):
    check_folder(tmp_path / "a/b")
    require_new_folder(tmp_path / "a/b")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["file", ".hidden", "link"])
def test_a_folder_that_contains_anything_is_not_new(tmp_path, name):
    require_new_folder(tmp_path)
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"{name}: already exists; choose a new or empty"):
        require_new_folder(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_decides_who_can_read_a_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_json_is_indented_and_keeps_unicode(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 0.1]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "é": [\n    1,\n    0.1\n  ]\n}\n'.encode()


def test_text_keeps_its_line_endings(tmp_path):
    write_text(tmp_path / "a.txt", "a\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"a\r\nb\n"
