import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.tokenizer import comparison
from bench.tokenizer.__main__ import main
from bench.tokenizer.comparison import Case, cases_of, compare
from bench.tokenizer.measure import DOCUMENT_LENGTH, digest
from bench.tokenizer.report import report
from bench.tokenizer.systems import SYSTEMS, write_files
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

TEXT = f"low lower newest widest.{END_OF_TEXT}I've seen 12 new snowmen ☃ ☃.  They melt.\n\n{END_OF_TEXT}" * 20


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A text, the folder of a tokenizer trained on it, and the token ids of the text."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    tokenizer = Tokenizer(*train_bpe(tmp_path / "text.txt", 300, [END_OF_TEXT]), [END_OF_TEXT])
    write_files(tokenizer, tmp_path / "trained")
    np.save(tmp_path / "trained" / "text.npy", np.array(tokenizer.encode(TEXT), dtype=np.uint32))
    return tmp_path


@pytest.mark.parametrize("name", ["tiktoken", "tokenizers"])
def test_other_systems_read_the_same_tokenizer_from_the_files(files: Path, name: str) -> None:
    system = SYSTEMS[name](files / "trained", threads=1)
    ids = np.load(files / "trained" / "text.npy").tolist()
    assert list(system.encode(TEXT)) == ids
    assert [list(ids) for ids in system.encode_documents([TEXT, TEXT])] == [ids, ids]
    assert system.decode(ids) == TEXT


@pytest.mark.parametrize("name", ["tiktoken", "lm", "tokenizers"])
@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "gpt2"])
def test_systems_read_the_pattern_from_the_files(files: Path, name: str, pattern: str) -> None:
    trained = Tokenizer.load(files / "trained")
    tokenizer = Tokenizer(trained.vocab, trained.merges, [END_OF_TEXT], pattern)
    write_files(tokenizer, files / "trained" / pattern)
    text = TEXT + "It'S 1234567!\n\n  Yes"
    assert list(SYSTEMS[name](files / "trained" / pattern, threads=1).encode(text)) == tokenizer.encode(text)


def test_every_system_declares_what_its_tasks_take() -> None:
    for system in SYSTEMS.values():
        if hasattr(system, "train"):
            assert system.trains_from in ("path", "documents")
        if hasattr(system, "decode"):
            assert system.decodes in ("array", "list")
        assert hasattr(system, "encode") == hasattr(system, "encode_documents")


def test_digest_is_that_of_the_ids_whatever_holds_them() -> None:
    assert digest([1, 2, 3]) == digest(np.array([1, 2, 3], np.uint16)) != digest([1, 2, 4])
    documents = [[1, 2], [], [3]]
    flat = np.array([1, 2, 3], np.uint32), np.array([0, 2, 2, 3])
    assert digest(documents) == digest([np.array(ids, np.uint32) for ids in documents]) == digest(flat)
    assert digest([[1], [2, 3], []]) != digest(documents)


def measured(project: Path, **job: object) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "-m", "bench.tokenizer.measure", json.dumps(job)]
    return json.loads(subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("task", ["encode", "encode_documents", "decode"])
def test_a_measurement_checks_what_it_times(project: Path, files: Path, task: str) -> None:
    source = str(files / ("trained/text.npy" if task == "decode" else "text.txt"))
    job = {"task": task, "system": "tiktoken", "threads": 1, "folder": str(files / "trained")}
    run = measured(project, **job, input=source, warm_up=source)
    tokenizer = Tokenizer.load(files / "trained")
    results = {
        "encode": tokenizer.encode(TEXT),
        "encode_documents": [tokenizer.encode(TEXT[:DOCUMENT_LENGTH])],
        "decode": TEXT,
    }
    assert len(TEXT) < DOCUMENT_LENGTH
    assert run["check"] == digest(results[task])
    assert run["bytes"] == len(TEXT.encode())
    assert run["seconds"] > 0 and run["second_seconds"] > 0 and run["peak_mb"] >= 0


def test_training_is_measured_by_the_size_of_the_vocabulary(project: Path, files: Path) -> None:
    text = str(files / "text.txt")
    run = measured(project, task="train", system="tokenizers", threads=1, vocab_size=290, input=text, warm_up=text)
    assert run["check"] == 290
    assert run["bytes"] == len(TEXT.encode())
    assert "second_seconds" not in run


def fake(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]], **checks: str) -> None:
    """Replace the measuring processes: the seconds of each system's calls, and the checks that differ."""
    calls = {name: iter(of_system) for name, of_system in seconds.items()}

    def measure(folder: Path, case: Case, system: str) -> dict[str, Any]:
        first = next(calls[system], None)
        if first is None:
            raise comparison.NotMeasured("ran out of luck")
        return {"check": checks.get(system, "same"), "bytes": 6_000_000, "seconds": first, "peak_mb": 8.0}

    monkeypatch.setattr(comparison, "measure", measure)


def test_a_result_is_the_median_and_a_long_call_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, {"tiktoken": [4.0], "lm": [2.0, 3.0, 1.0]})
    rows, problems = compare(Path(), [Case("encode", "code", "gpt2", 50257, 1)], ["tiktoken", "lm"], 3)
    results = [(row["system"], row["mb_per_second"], row["calls"]) for row in rows]
    assert results == [("tiktoken", 1.5, 1), ("lm", 3.0, 3)]
    assert not problems


def test_a_system_that_fails_or_differs_is_listed_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"tiktoken": [2.0], "lm": [1.0], "gigatoken": [], "snaptokens": [1.0]}
    fake(monkeypatch, seconds, snaptokens="other")
    case = Case("encode", "code", "gpt2", 50257, 2)
    rows, problems = compare(Path(), [case], ["tiktoken", "lm", "gigatoken", "snaptokens"], 1)
    assert [row["system"] for row in rows] == ["tiktoken", "lm"]
    text = report(rows, {"code": 6_000_000}, problems)
    assert "- gigatoken: ran out of luck (encode, code, vocab_size 50257, threads 2)" in text
    assert "- snaptokens: its ids differ from those of tiktoken (encode, code, vocab_size 50257, threads 2)" in text
    assert "| code | gpt2 | 50257 | 2 | 6 | 3 | 2.00 | 2.00 |" in text
    assert {"task", "text", "vocab_size", "threads", "system", "mb_per_second", "peak_mb"} <= rows[0].keys()


def test_every_text_is_measured_with_every_vocabulary_and_number_of_threads() -> None:
    texts, merges = ["stories", "all", "code", "chinese"], {"gpt2": 50257, "trained": 10_000}
    train = cases_of("train", texts, {}, [1, 2])
    assert {(case.text, case.vocab_size, case.threads) for case in train} == {
        (text, size, threads) for text in ("stories", "all") for size in (10_000, 32_000) for threads in (1, 2)
    }
    patterns = merges | {"gpt2/llama3": 50257}
    assert any(case.merges == "gpt2/llama3" for case in cases_of("encode", texts, patterns, [1]))
    assert all(case.merges in merges for case in cases_of("decode", texts, patterns, [1])), "cuts make no difference"
    for task in ("encode", "encode_documents"):
        cases = cases_of(task, texts, merges, [1, 2])
        assert {(case.text, case.merges, case.threads) for case in cases} == {
            (text, name, threads) for text in texts for name in merges for threads in (1, 2)
        }


@pytest.mark.parametrize("arguments", [["--data", "nowhere"], ["--threads", "0"], ["--json", "/dev/null/x/rows.json"]])
def test_a_bad_argument_gives_one_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.tokenizer", *arguments])
    with pytest.raises(UserError, match=arguments[0] if arguments[0] != "--json" else "/dev/null: "):
        main()
