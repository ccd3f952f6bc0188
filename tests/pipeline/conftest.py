"""A small copy of the project with its own git and DVC, whose pipeline takes seconds per stage."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]

SMALL = {
    "data": {"train_bytes": 60_000, "val_bytes": 6_000},
    "tokenizer": {"vocab_size": 320},
    "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "d_ff": 24, "context_length": 32},
    "optim": {"warmup_steps": 2, "decay_steps": 2},
    "train": {"max_steps": 6, "batch_size": 2, "short_fraction": 0.4, "short_context_length": 8, "eval_every": 3},
    "sample": {"prompts": ["Once"], "num_samples": 1, "max_new_tokens": 8},
    "evaluate": {"num_samples": 2, "pairs_per_kind": 1},
    "ablate": {"run": ["baseline"], "points": ["16x1-256"], "seeds": [1]},
    "scale": {"points": ["16x1-1280"], "num_evaluations": 1},
}

NOT_COPIED = "metrics/", "studies/", "tests/", "bench/", "dvc.lock", ".dvc/"

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """Stages use the interpreter of the tests; git and DVC use no settings from outside the copy."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    author = {f"GIT_{role}_{field}": "test" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    own = {"PYTHONPATH": "", "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull, "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PATH": path, **author, **own}


def copy_of_the_project(folder: Path) -> Path:
    """Copy the files under version control, as they are in the working tree, with parameters for a run of seconds."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split("\0")[:-1] if listed.returncode == 0 else []
    names = names or [
        str(path.relative_to(PROJECT)) for room in ("lm", "stages") for path in (PROJECT / room).rglob("*")
    ]
    for name in {*names, "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"}:
        source, target = PROJECT / name, folder / name
        if source.is_file() and not name.startswith(NOT_COPIED):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for section, values in SMALL.items():
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")
    return folder


def run_in(folder: Path) -> Run:
    def run(*command: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
        assert (result.returncode != 0) == fails, f"{command}\n{result.stdout}\n{result.stderr}"
        return result

    return run


def run_once(folder: Path) -> Path:
    """Run the pipeline in a new copy of the project, and commit everything."""
    shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt that failed
    run = run_in(copy_of_the_project(folder))
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    result = run("dvc", "repro")
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "first run")
    (folder / "console").write_text(result.stdout + result.stderr)
    return folder


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy in which the pipeline has run once and everything is committed. A test that changes it uses `changed`.

    Of several processes of pytest-xdist, one runs the pipeline, and each has a copy of the result.
    """
    if worker_id == "master":  # the only process
        return run_once(tmp_path_factory.mktemp("pipeline"))
    shared = tmp_path_factory.getbasetemp().with_name("pipeline")
    with FileLock(f"{shared}.lock"):
        if not (shared / "console").exists():
            run_once(shared)
    return Path(shutil.copytree(shared, tmp_path_factory.mktemp("pipeline"), symlinks=True, dirs_exist_ok=True))


@pytest.fixture
def run(pipeline: Path) -> Run:
    return run_in(pipeline)


@pytest.fixture
def changed(pipeline: Path, run: Run) -> Iterator[Path]:
    """The pipeline, which is restored after the test."""
    yield pipeline
    run("git", "checkout", "-q", "--", ".")
    run("dvc", "checkout", "-q", "--force")
