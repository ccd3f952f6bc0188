import subprocess

import pytest

from lm.report.commit import read_commit


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A function that runs git in a folder of its own, without the settings of the user."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as in a hook of git
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "project" / "lm").mkdir(parents=True)

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "project", check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return git


def test_a_clean_commit_and_what_is_changed_since(git, tmp_path):
    folder = tmp_path / "project"
    git("init")
    assert read_commit(folder) is None  # no commit yet
    for name in ("params.yaml", "lm/é.py", "lm/b.py"):
        (folder / name).write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    (folder / "report.html").write_text("not tracked")
    commit = read_commit(folder)
    assert commit is not None and commit.hash == git("rev-parse", "HEAD") and commit.changed == []
    assert str(commit) == commit.hash[:8]

    (folder / "params.yaml").write_text("b")
    for name in ("lm/é.py", "lm/b.py"):
        (folder / name).write_text("b")
    git("add", "lm")
    changed = read_commit(folder)
    assert changed is not None and changed.changed == ["lm", "params.yaml"]
    assert str(changed) == f"{commit.hash[:8]} with changes"
    below = read_commit(folder / "lm")
    assert below is not None and below.changed == ["b.py", "é.py"]


def test_no_repository_and_no_git(git, tmp_path, monkeypatch):
    assert read_commit(tmp_path / "project") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_commit(tmp_path / "project") is None
