"""The stages train_bpe and encode_memmap, run as DVC runs them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(stage: str, work: Path) -> subprocess.CompletedProcess[str]:
    flags = ["--raw", "data/raw", "--tokenizer", "data/tokenizer", "--timing", "data/.timing"]
    if stage == "train_bpe":
        flags += ["--metrics", "metrics/tokenizer.json"]
    else:
        flags += ["--tokens", "data/tokens", "--metrics", "metrics/tokens.json"]
    command = [sys.executable, str(PROJECT / "stages" / f"{stage}.py"), *flags]
    return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)


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
    assert "The text ran out of pairs: the vocabulary has 258 tokens, not 400." in result.stdout
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
