"""The stages train_bpe and encode_memmap, run as DVC runs them."""

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import open_tokens

PROJECT = Path(__file__).resolve().parents[2]
END = "<|endoftext|>"


@pytest.fixture
def work(tmp_path: Path, text: str) -> Path:
    """A folder with params.yaml and data/raw, where `text` is the train split and its beginning the val split."""
    params = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(params.replace("vocab_size: 2048", "vocab_size: 400"), encoding="utf-8")
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    splits = {}
    for split, part in (("train", text), ("val", text[:20_000])):
        body = part[: part.rindex(END) + len(END)]
        (raw / f"{split}.txt").write_bytes(body.encode())
        size, documents = len(body.encode()), body.count(END)
        digest = hashlib.sha256(body.encode()).hexdigest()
        splits[split] = {"bytes": size - 13 * documents, "documents": documents, "sha256": digest}
    (raw / "manifest.json").write_text(json.dumps({"source": "files", "splits": splits, "provenance": []}))
    return tmp_path


def command(stage: str) -> list[str]:
    flags = ["--raw", "data/raw", "--tokenizer", "data/tokenizer", "--timing", "data/.timing"]
    if stage == "train_bpe":
        flags += ["--metrics", "metrics/tokenizer.json"]
    else:
        flags += ["--tokens", "data/tokens", "--metrics", "metrics/tokens.json"]
    return [str(PROJECT / "stages" / f"{stage}.py"), *flags]


def run(stage: str, work: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command(stage)], cwd=work, capture_output=True, text=True, check=False)


def refusal(stage: str, work: Path) -> str:
    result = run(stage, work)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_both_stages_make_token_files_that_give_the_text_back(work: Path) -> None:
    for stage in ("train_bpe", "encode_memmap"):
        result = run(stage, work)
        assert result.returncode == 0, result.stderr
        assert "MB/s" in result.stdout
    tokenizer = Tokenizer.load(work / "data/tokenizer")
    train, facts = open_tokens(work / "data/tokens", "train", tokenizer.hash)
    assert tokenizer.decode(train) == (work / "data/raw/train.txt").read_bytes().decode()

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
    assert metrics["vocabulary_use"] == len(set(train.tolist())) / 400
    assert {path.name for path in (work / "data/.timing").iterdir()} == {"train_bpe.json", "encode_memmap.json"}


def test_the_same_text_and_parameters_give_the_same_bytes(work: Path) -> None:
    outputs = []
    for _ in range(2):
        for stage in ("train_bpe", "encode_memmap"):
            assert run(stage, work).returncode == 0
        folders = (work / "data/tokenizer", work / "data/tokens", work / "metrics")
        outputs.append({path: path.read_bytes() for folder in folders for path in folder.iterdir()})
    assert outputs[0] == outputs[1] and len(outputs[0]) == 8


def test_a_vocabulary_larger_than_the_text_allows_is_said(work: Path) -> None:
    (work / "data/raw/train.txt").write_text(f"aa{END}")
    result = run("train_bpe", work)
    assert "the text has no more pairs to merge: 258 tokens instead of 400" in result.stdout
    assert json.loads((work / "metrics/tokenizer.json").read_text())["vocab_size"] == 258


def test_missing_inputs_are_named_with_the_stage_that_makes_them(work: Path) -> None:
    assert refusal("encode_memmap", work) == (
        "error: data/tokenizer/pre_tokenizer.json: cannot be read (No such file or directory); "
        "make it with: dvc repro train_bpe"
    )
    (work / "data/raw/train.txt").unlink()
    assert refusal("train_bpe", work) == "error: data/raw/train.txt: no such file; make it with: dvc repro download"


def test_text_that_is_not_utf8_is_named_by_file_and_offset(work: Path) -> None:
    with (work / "data/raw/train.txt").open("ab") as file:
        offset = file.tell()
        file.write(b"\xff")
    message = f"error: data/raw/train.txt: not UTF-8 at byte {offset:,}; convert the file to UTF-8"
    assert refusal("train_bpe", work) == message


def test_an_unwritable_folder_is_named_before_any_work(work: Path) -> None:
    (work / "metrics").write_text("a file where a folder should be")
    result = run("train_bpe", work)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: metrics: cannot be written")


def test_a_pattern_that_is_no_regular_expression_is_named(work: Path) -> None:
    path = work / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("pattern: gpt2", "pattern: '(a'"), encoding="utf-8")
    assert "tokenizer.pattern: " in refusal("train_bpe", work)


def test_the_stages_import_no_torch() -> None:
    for stage in ("train_bpe", "encode_memmap"):
        code = f"import runpy, sys; runpy.run_path('stages/{stage}.py'); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


# Runs a stage by kernels, in small blocks, and kills it before or after the n-th call of a function.
KILLED = """
import importlib, os, runpy, signal, sys
from functools import partial
from lm.tokenizer import tokenizer
from lm.tokenizer.text.fast.text_file import read_blocks

tokenizer._MIN_LENGTH_TO_COMPILE = 0
tokenizer.read_blocks = partial(read_blocks, block_bytes=4096)
module, name, number, when = sys.argv[1].split()
function = getattr(importlib.import_module(module), name)
calls = 0

def killing(*arguments, **named):
    global calls
    calls += 1
    if calls == int(number) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*arguments, **named)
    if calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(importlib.import_module(module), name, killing)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Of each split a block is counted before it is written, the file is brought to disk, then it gets its name; the
# manifest is the third file, the metrics are the fourth.
POINTS = [
    "numpy bincount 1 before", "numpy bincount 9 after", "os fsync 1 before", "os fsync 1 after", "os replace 1 before",
    "os replace 1 after", "os fsync 2 after", "os replace 2 after", "os replace 3 before", "os replace 3 after",
]  # fmt: skip


@pytest.mark.usefixtures("kernels")
def test_a_kill_at_any_point_leaves_no_unfinished_file_and_a_second_run_succeeds(work: Path) -> None:
    assert run("train_bpe", work).returncode == 0
    assert run("encode_memmap", work).returncode == 0
    folder = work / "data/tokens"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(expected) == {"train.bin", "val.bin", "manifest.json"}
    num_left = []
    for point in POINTS:
        shutil.rmtree(folder)
        result = subprocess.run(
            [sys.executable, "-c", KILLED, point, *command("encode_memmap")], cwd=work, capture_output=True, check=False
        )
        assert result.returncode == -signal.SIGKILL, (point, result.stderr)
        left = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}
        assert all(expected[name] == content for name, content in left.items()), point
        num_left.append(len(left))
    assert num_left == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3], "each point should be where its name says"
    assert run("encode_memmap", work).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


@pytest.mark.usefixtures("kernels")
def test_a_kill_at_any_moment_leaves_no_unfinished_file(work: Path) -> None:
    assert run("train_bpe", work).returncode == 0
    assert run("encode_memmap", work).returncode == 0
    folder = work / "data/tokens"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
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
    assert run("encode_memmap", work).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


@pytest.mark.usefixtures("kernels")
def test_a_killed_run_leaves_the_files_of_the_run_before_refused_or_whole(work: Path) -> None:
    assert run("train_bpe", work).returncode == 0
    assert run("encode_memmap", work).returncode == 0
    # Another text, and a kill when its train split has taken the place of the old one.
    raw = work / "data/raw"
    manifest = json.loads((raw / "manifest.json").read_text())
    (raw / "train.txt").write_bytes((raw / "val.txt").read_bytes())
    manifest["splits"]["train"] = manifest["splits"]["val"]
    (raw / "manifest.json").write_text(json.dumps(manifest))
    subprocess.run(
        [sys.executable, "-c", KILLED, "os replace 1 after", *command("encode_memmap")],
        cwd=work, capture_output=True, check=False,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"train\.bin: .*make it again with: dvc repro encode_memmap"):
        open_tokens(work / "data/tokens", "train", None)
    assert run("encode_memmap", work).returncode == 0
    assert len(open_tokens(work / "data/tokens", "train", None)[0]) > 1000
