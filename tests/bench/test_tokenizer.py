import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lm.corpus.config import END_OF_TEXT
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

TEXT = f"low lower newest widest.{END_OF_TEXT}I've seen 12 new snowmen ☃ ☃.  They melt.\n\n{END_OF_TEXT}" * 20


@pytest.fixture
def files(bench: Any, tmp_path: Path) -> Path:
    """A text, the folder of a tokenizer trained on it, and the ids that the tokenizer gives it."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    tokenizer = Tokenizer(*train_bpe(tmp_path / "text.txt", 300, [END_OF_TEXT]), [END_OF_TEXT])
    bench("systems").write_files(tokenizer, tmp_path / "trained")
    np.save(tmp_path / "trained" / "text.npy", np.array(tokenizer.encode(TEXT), dtype=np.uint32))
    return tmp_path


@pytest.mark.parametrize("name", ["tiktoken", "tokenizers"])
def test_other_systems_read_the_same_tokenizer_from_the_files(bench: Any, files: Path, name: str) -> None:
    system = bench("systems").SYSTEMS[name](files / "trained", threads=1)
    ids = np.load(files / "trained" / "text.npy").tolist()
    assert list(system.encode(TEXT)) == ids
    assert [list(ids) for ids in system.encode_documents([TEXT, TEXT])] == [ids, ids]
    assert system.decode(ids) == TEXT


def test_every_system_says_what_its_tasks_take(bench: Any) -> None:
    for system in bench("systems").SYSTEMS.values():
        if hasattr(system, "train"):
            assert system.trains_from in ("path", "documents")
        if hasattr(system, "decode"):
            assert system.decodes in ("array", "list")
        assert hasattr(system, "encode") == hasattr(system, "encode_documents")


def test_digest_is_that_of_the_ids_whatever_holds_them(bench: Any) -> None:
    digest = bench("measure").digest
    assert digest([1, 2, 3]) == digest(np.array([1, 2, 3], np.uint16)) != digest([1, 2, 4])
    documents = [[1, 2], [], [3]]
    flat = np.array([1, 2, 3], np.uint32), np.array([0, 2, 2, 3])
    assert digest(documents) == digest([np.array(ids, np.uint32) for ids in documents]) == digest(flat)
    assert digest([[1], [2, 3], []]) != digest(documents)


def measured(project: Path, **job: object) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", project / "bench" / "measure.py", json.dumps(job)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("task", ["encode", "encode_documents", "decode"])
def test_a_measurement_checks_what_it_times(bench: Any, project: Path, files: Path, task: str) -> None:
    source = str(files / ("trained/text.npy" if task == "decode" else "text.txt"))
    job = {"task": task, "system": "tiktoken", "threads": 1, "folder": str(files / "trained")}
    run = measured(project, **job, input=source, warm_up=source)
    length = bench("measure").DOCUMENT_LENGTH
    tokenizer = Tokenizer.load(files / "trained")
    results = {
        "encode": tokenizer.encode(TEXT),
        "encode_documents": [tokenizer.encode(TEXT[:length])],
        "decode": TEXT,
    }
    assert len(TEXT) < length
    assert run["check"] == bench("measure").digest(results[task])
    assert run["bytes"] == len(TEXT.encode())
    assert run["seconds"] > 0 and run["second_seconds"] > 0 and run["peak_mb"] >= 0


def test_training_is_measured_by_the_size_of_the_vocabulary(project: Path, files: Path) -> None:
    text = str(files / "text.txt")
    run = measured(project, task="train", system="tokenizers", threads=1, vocab_size=290, input=text, warm_up=text)
    assert run["check"] == 290
    assert run["bytes"] == len(TEXT.encode())
    assert "second_seconds" not in run


def fake(monkeypatch: pytest.MonkeyPatch, script: ModuleType, seconds: dict[str, list[float]], **checks: str) -> None:
    """Stand in for the measuring processes: the seconds of each system's calls, and what differs of its result."""
    calls = {name: iter(of_system) for name, of_system in seconds.items()}

    def measure(folder: Path, cell: object, system: str) -> dict[str, Any]:
        first = next(calls[system], None)
        if first is None:
            raise script.NotMeasured("ran out of luck")
        return {"check": checks.get(system, "same"), "bytes": 6_000_000, "seconds": first, "peak_mb": 8.0}

    monkeypatch.setattr(script, "measure", measure)


def test_a_figure_is_the_median_and_a_long_call_is_not_repeated(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = bench("tokenizer")
    fake(monkeypatch, script, {"tiktoken": [4.0], "lm": [2.0, 3.0, 1.0]})
    rows, problems = script.run(Path(), [script.Cell("encode", "code", "gpt2", 50257, 1)], ["tiktoken", "lm"], 3)
    figures = [(row["system"], row["mb_per_second"], row["calls"]) for row in rows]
    assert figures == [("tiktoken", 1.5, 1), ("lm", 3.0, 3)]
    assert not problems


def test_a_system_that_fails_or_differs_is_named_and_the_rest_goes_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, tables = bench("tokenizer"), bench("tables")
    seconds = {"tiktoken": [2.0], "lm": [1.0], "gigatoken": [], "snaptokens": [1.0]}
    fake(monkeypatch, script, seconds, snaptokens="other")
    cell = script.Cell("encode", "code", "gpt2", 50257, 2)
    rows, problems = script.run(Path(), [cell], ["tiktoken", "lm", "gigatoken", "snaptokens"], 1)
    assert [row["system"] for row in rows] == ["tiktoken", "lm"]
    text = tables.report(rows, {"code": 6_000_000}, {"tiktoken": "1.0"}, problems)
    assert "- gigatoken: ran out of luck (encode, code, vocab_size 50257, threads 2)" in text
    assert "- snaptokens: its ids differ from those of tiktoken (encode, code, vocab_size 50257, threads 2)" in text
    assert "| code | gpt2 | 50257 | 2 | 6 | 3 | 2.00 | 2.00 |" in text
    assert {"task", "text", "vocab_size", "threads", "system", "mb_per_second", "peak_mb"} <= rows[0].keys()


def test_every_text_is_measured_with_every_vocabulary_and_number_of_threads(bench: Any) -> None:
    script = bench("tokenizer")
    texts, merges = ["stories", "all", "code", "chinese"], {"gpt2": 50257, "trained": 10_000}
    train = script.plan("train", texts, {}, [1, 2], quick=False)
    assert {(cell.text, cell.vocab_size, cell.threads) for cell in train} == {
        (text, size, threads) for text in ("stories", "all") for size in (10_000, 32_000) for threads in (1, 2)
    }
    for task in ("encode", "encode_documents"):
        cells = script.plan(task, texts, merges, [1, 2], quick=False)
        assert {(cell.text, cell.merges, cell.threads) for cell in cells} == {
            (text, name, threads) for text in texts for name in merges for threads in (1, 2)
        }


@pytest.mark.parametrize("arguments", [["--data", "nowhere"], ["--threads", "0"], ["--json", "/dev/null/x/rows.json"]])
def test_a_bad_argument_gives_one_line(project: Path, tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, project / "bench" / "tokenizer.py", *arguments]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
