"""The stages train_bpe and encode_memmap."""

import contextlib
import json
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lm.progress import lock_folder
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.files import open_tokens
from tests.tokens.conftest import write_text

PROJECT = Path(__file__).resolve().parents[2]
END = "<|endoftext|>"
STAGES = ("train_bpe", "encode_memmap")


class Result(NamedTuple):
    error: str | None  # what the stage printed when it failed
    output: str


Run = Callable[[str], Result]


@pytest.fixture
def work(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and data/raw, where `text` is the train split and its beginning the val split."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # for stages in processes of their own
    params = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(params.replace("vocab_size: 2048", "vocab_size: 400"), encoding="utf-8")
    (tmp_path / "data").mkdir()
    write_text(tmp_path / "data/raw", {"train": [whole_documents(text)], "val": [whole_documents(text[:20_000])]})
    return tmp_path


def whole_documents(text: str) -> str:
    return text[: text.rindex(END) + len(END)]


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a stage in this process."""
    monkeypatch.chdir(work)

    def run_stage(stage: str) -> Result:
        monkeypatch.setattr(sys, "argv", command(stage))
        failed = False
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit:
            failed = True
        output = capsys.readouterr()
        return Result(output.err.strip() if failed else None, output.out)

    return run_stage


def command(stage: str) -> list[str]:
    flags = ["--raw", "data/raw", "--tokenizer", "data/tokenizer", "--timing", "data/.timing"]
    if stage == "train_bpe":
        flags += ["--metrics", "metrics/tokenizer.json", "--unfinished", "data/.unfinished/train_bpe"]
    else:
        flags += ["--tokens", "data/tokens", "--metrics", "metrics/tokens.json"]
        flags += ["--unfinished", "data/.unfinished/encode_memmap"]
    return [str(PROJECT / "stages" / f"{stage}.py"), *flags]


def test_the_token_files_decode_to_the_text(work: Path, run: Run) -> None:
    for stage in STAGES:
        error, output = run(stage)
        assert error is None and "MB/s" in output
    tokenizer = Tokenizer.load(work / "data/tokenizer")
    train, facts = open_tokens(work / "data/tokens", "train", tokenizer.hash)
    assert tokenizer.decode(train[:]) == (work / "data/raw/train.txt").read_bytes().decode()

    metrics = json.loads((work / "metrics/tokenizer.json").read_text(encoding="utf-8"))
    assert (metrics["vocab_size"], metrics["num_merges"]) == (400, 143)
    assert metrics["longest_token_bytes"] == max(len(token) for token in list(tokenizer.vocab.values())[:-1])
    longest = metrics["longest_tokens"].split(" | ")
    assert len(longest) == 10 and len(longest[0].encode()) == metrics["longest_token_bytes"]

    metrics = json.loads((work / "metrics/tokens.json").read_text(encoding="utf-8"))
    assert set(metrics) == {
        "train_tokens", "val_tokens", "train_bytes_per_token", "val_bytes_per_token", "vocabulary_use",
    }  # fmt: skip
    assert metrics["train_tokens"] == len(train)
    assert metrics["train_bytes_per_token"] == facts["bytes"] / len(train)
    assert metrics["vocabulary_use"] == len(set(train[:].tolist())) / 400
    assert {path.name for path in (work / "data/.timing").iterdir()} == {"train_bpe.json", "encode_memmap.json"}
    assert not list((work / "data/.unfinished").glob("*"))


def test_the_same_text_and_parameters_give_the_same_bytes(work: Path, run: Run) -> None:
    outputs = []
    for _ in range(2):
        for stage in STAGES:
            assert run(stage).error is None
        folders = (work / "data/tokenizer", work / "data/tokens", work / "metrics")
        outputs.append({path: path.read_bytes() for folder in folders for path in folder.iterdir()})
    assert outputs[0] == outputs[1] and len(outputs[0]) == 8


def test_a_vocabulary_larger_than_the_text_allows_is_reported(work: Path, run: Run) -> None:
    write_text(work / "data/raw", {"train": [f"aa{END}"], "val": [f"a{END}"]})
    assert "the text has no more pairs to merge: 258 tokens instead of 400" in run("train_bpe").output
    assert json.loads((work / "metrics/tokenizer.json").read_text())["vocab_size"] == 258


def test_the_error_names_a_missing_input_and_the_stage_that_makes_it(work: Path, run: Run) -> None:
    assert run("encode_memmap").error == (
        "error: data/tokenizer/pre_tokenizer.json: there is no such file; make it with: dvc repro train_bpe"
    )
    (work / "data/raw/train.txt").unlink()
    assert run("train_bpe").error == (
        "error: data/raw/train.txt: cannot be read (No such file or directory); make it with: dvc repro download"
    )
    shutil.rmtree(work / "data/raw")
    assert run("train_bpe").error == (
        "error: data/raw/manifest.json: there is no such file; make it with: dvc repro download"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_still_running_is_named(work: Path, run: Run, stage: str) -> None:
    assert run("train_bpe").error is None
    with lock_folder(work / "data/.unfinished" / stage, "run"):
        error = run(stage).error
    assert re.fullmatch(
        rf"error: data/\.unfinished/{stage}: another \w.* is running in this folder; wait for .*", error
    )


def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(work: Path, run: Run) -> None:
    path = work / "data/raw/train.txt"
    offset = path.stat().st_size - len(END)
    path.write_bytes(path.read_bytes()[:offset] + b"\xff" * len(END))
    message = f"error: data/raw/train.txt: not UTF-8 at byte {offset:,}; convert the file to UTF-8"
    assert run("train_bpe").error == message


def test_an_unwritable_folder_is_reported_before_any_work(work: Path, run: Run) -> None:
    (work / "metrics").write_text("a file instead of a folder")
    error, output = run("train_bpe")
    assert error is not None and error.startswith("error: metrics: cannot be written") and not output


def test_an_invalid_pattern_is_reported(work: Path, run: Run) -> None:
    path = work / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("pattern: gpt2", "pattern: '(a'"), encoding="utf-8")
    assert "tokenizer.pattern: " in str(run("train_bpe").error)


def test_the_stages_import_neither_torch_nor_ray() -> None:
    code = "import sys, stages.train_bpe, stages.encode_memmap; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


# Runs a stage with kernels, in small pieces, and kills it before or after the n-th call of a function.
KILLED_STAGE = """
import importlib, os, runpy, signal, sys
from lm.tokenizer import tokenizer
from lm.tokenizer.text.fast import chunks

tokenizer._MIN_LENGTH_TO_COMPILE = 0
chunks._MIN_PIECE_LENGTH = chunks._MAX_PIECE_LENGTH = 4096
module, name, number, when = sys.argv[1].split()
function = getattr(importlib.import_module(module), name)
calls = 0

def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(number) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*args, **kwargs)
    if calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(importlib.import_module(module), name, killing)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# For each split, a piece is counted before it is written, then the token file is flushed to disk and replaced, and then
# the record of finished files. Both token files are then moved (`os.rename`). The manifest is the fifth file that is
# replaced. With each point: how many of the three files are in data/tokens at that point.
POINTS = {
    "numpy bincount 9 after": 0, "os rename 1 after": 1, "os replace 5 before": 2,
}  # fmt: skip
MORE_POINTS = {
    "numpy bincount 1 before": 0, "os fsync 1 before": 0, "os fsync 1 after": 0, "os replace 1 before": 0,
    "os replace 1 after": 0, "os replace 2 before": 0, "os replace 2 after": 0, "os replace 3 after": 0,
    "os replace 4 after": 0, "os rename 1 before": 0, "os rename 2 before": 1, "os rename 2 after": 2,
    "os replace 5 after": 3,
}  # fmt: skip


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("points", [POINTS, pytest.param(MORE_POINTS, marks=pytest.mark.slow)], ids=["some", "more"])
def test_a_killed_stage_leaves_no_unfinished_file_and_can_be_repeated(
    work: Path, run: Run, points: dict[str, int]
) -> None:
    expected = run_both(work, run)
    folder = work / "data/tokens"
    for point, num_left in points.items():
        shutil.rmtree(folder)
        shutil.rmtree(work / "data/.unfinished")
        result = subprocess.run(
            [sys.executable, "-c", KILLED_STAGE, point, *command("encode_memmap")],
            cwd=work,
            capture_output=True,
            check=False,
        )
        assert result.returncode == -signal.SIGKILL, (point, result.stderr)
        left = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}
        assert all(expected[name] == content for name, content in left.items()), point
        assert len(left) == num_left, point
        shutil.rmtree(folder)  # as DVC does before it runs the stage again
        assert run("encode_memmap").error is None
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected, point


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_a_stage_killed_at_any_time_leaves_no_unfinished_file(work: Path, run: Run) -> None:
    expected = run_both(work, run)
    folder = work / "data/tokens"
    for seconds in (0.12, 0.17, 0.22, 0.27):
        shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, *command("encode_memmap")], cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        process.wait()
        left = {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix != ".part"}
        assert all(expected[name] == content for name, content in left.items()), seconds
    shutil.rmtree(folder, ignore_errors=True)
    assert run("encode_memmap").error is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def run_both(work: Path, run: Run) -> dict[str, bytes]:
    """Run both stages and return the contents of data/tokens."""
    for stage in STAGES:
        assert run(stage).error is None
    contents = {path.name: path.read_bytes() for path in (work / "data/tokens").iterdir()}
    assert set(contents) == {"train.bin", "val.bin", "manifest.json"}
    return contents
