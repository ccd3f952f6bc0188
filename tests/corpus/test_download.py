"""The whole stage, without the hub."""

import gzip
import hashlib
import json
import os
import time

import pytest

from lm.corpus.urls import redact


def outputs(tmp_path):
    """The bytes of both splits, the manifest and the metrics."""
    train, val = ((tmp_path / "raw" / f"{name}.txt").read_bytes() for name in ("train", "val"))
    files = (tmp_path / "raw/manifest.json", tmp_path / "metrics/download.json")
    return train, val, *(json.loads(file.read_text()) for file in files)


def test_stories(run_stage, tmp_path):
    settings = {"source": "stories", "train_bytes": 50_000, "val_bytes": 10_000}
    assert not run_stage(**settings)
    train, val, manifest, metrics = first = outputs(tmp_path)
    for name, data in (("train", train), ("val", val)):
        documents = data.count(b"<|endoftext|>")
        size = len(data) - 13 * documents
        assert settings[f"{name}_bytes"] <= size < settings[f"{name}_bytes"] + 5000
        facts = {"bytes": size, "documents": documents}
        entry = {**facts, "shards": [{**facts, "sha256": hashlib.sha256(data).hexdigest()}]}
        assert manifest["splits"][name].items() >= entry.items()
        assert (metrics[f"{name}_bytes"], metrics[f"{name}_documents"]) == (size, documents)
    assert metrics["entropy_bits_per_byte"] == manifest["splits"]["val"]["entropy_bits"] / metrics["val_bytes"] > 0
    assert (manifest["source"], manifest["provenance"]) == ("stories", [])
    assert not run_stage(**settings)
    assert outputs(tmp_path) == first
    assert not run_stage(**settings, seed=2)
    assert outputs(tmp_path)[:2] != first[:2]


def test_stories_that_no_disk_can_hold(run_stage, tmp_path):
    error = run_stage(source="stories", train_bytes=10**15, val_bytes=10_000)
    assert error.startswith("error: raw: not enough disk space: 1,000,000,000,010,000 more bytes are needed and ")
    assert not list((tmp_path / "raw").iterdir())


def test_files(run_stage, tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(f"Document {number}." for number in range(200)))
    assert not run_stage(source="files", train_files=["*.txt"], val_fraction=0.1)
    train, val, manifest, metrics = outputs(tmp_path)
    assert sorted((train + val).decode().split("<|endoftext|>")[:-1]) == sorted(f"Document {n}." for n in range(200))
    assert set(metrics) == {"train_bytes", "train_documents", "val_bytes", "val_documents"}
    assert [entry["path"] for entry in manifest["provenance"]] == ["a.txt"]


@pytest.mark.parametrize("copy", ["newline.txt", "a.txt.gz", "a.jsonl", "part.txt", "twice.txt"])
def test_one_text_in_two_files(run_stage, tmp_path, capsys, copy):
    documents = [f"Document {number}." for number in range(60)]
    text = "<|endoftext|>".join(documents)
    contents = {
        "newline.txt": f"{text}\n".encode(),
        "a.txt.gz": gzip.compress(text.encode()),
        "a.jsonl": "".join(json.dumps({"text": document}) + "\n" for document in documents).encode(),
        "part.txt": "<|endoftext|>".join(documents[20:40]).encode(),
        "twice.txt": f"{text}<|endoftext|>{text}".encode(),
    }
    repeated = {"part.txt": 20, "twice.txt": 120}.get(copy, 60)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / copy).write_bytes(contents[copy])
    (tmp_path / "v.txt").write_text("One.<|endoftext|>Two.<|endoftext|>One.")
    line = f"data.train_files: {repeated} of {60 + repeated} documents repeat earlier ones; they are kept"

    assert not run_stage(source="files", train_files=["a.txt", copy], val_fraction=0.1)
    assert line in capsys.readouterr().err.splitlines()
    metrics = outputs(tmp_path)[3]
    assert metrics["train_documents"] + metrics["val_documents"] == 60 + repeated

    assert not run_stage(source="files", train_files=["a.txt", copy], val_files=["v.txt"])
    reports = capsys.readouterr().err.splitlines()
    assert {line, "data.val_files: 1 of 3 documents repeat earlier ones; they are kept"} <= set(reports)

    limited = {"train_documents": 30, "val_bytes": 5}
    assert not run_stage(source="files", train_files=["a.txt", copy], val_files=["v.txt"], **limited)
    assert "repeat" not in capsys.readouterr().err


def test_repetitions_before_a_limit(run_stage, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(["One.", "One.", "Two.", "Two."]))
    (tmp_path / "v.jsonl").write_text('{"text": "Three."}')
    assert not run_stage(source="files", train_files=["a.txt"], val_files=["v.jsonl"], train_documents=3)
    assert capsys.readouterr().err.splitlines() == [
        "data.train_files: 1 of 3 documents repeat earlier ones; they are kept",
    ]


def test_an_error_in_the_text_leaves_no_manifest(run_stage, tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_text("Two.")
    assert not run_stage(source="files", train_files=["a.txt"], val_files=["b.txt"])
    (tmp_path / "a.txt").write_bytes(b"One\xff")
    error = run_stage(source="files", train_files=["a.txt"], val_files=["b.txt"])
    assert error.startswith("error: a.txt: not UTF-8 text at byte 3 (0xff)")
    assert not (tmp_path / "raw/manifest.json").exists()


@pytest.mark.parametrize("name", ["raw", "cache", "metrics"])
def test_an_output_folder_that_is_a_file_is_reported_before_any_work(run_stage, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    error = run_stage(source="tinystories")
    assert error == f"error: {name}: cannot be written (File exists); check the path and its permissions"


def test_a_name_that_the_manifest_cannot_hold_is_reported_before_any_work(run_stage, tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("Two.")
    error = run_stage(source="files", train_files=["*.txt"])
    assert error == r"error: data.train_files: the name of the file caf\udce9.txt is not UTF-8 text; rename it"
    assert not list((tmp_path / "raw").iterdir())


def test_repeated_documents_leave_no_corpus(run_stage, tmp_path):
    (tmp_path / "a.txt").write_text("One.<|endoftext|>Two.")
    (tmp_path / "b.txt").write_text("Three.<|endoftext|>Two.\n")
    error = run_stage(source="files", train_files=["a.txt"], val_files=["b.txt"])
    assert error.startswith("error: data.val_files: 1 of 2 documents are also in data.train_files, such as 'Two.'; ")
    assert not list((tmp_path / "raw").iterdir())


def test_the_manifest_does_not_hold_a_password(run_stage, loopback, tmp_path, capsys):
    loopback.files |= {"/a.txt": b"One.<|endoftext|>Two.", "/b.txt": b"Three."}
    urls = [f"{loopback.endpoint}/{name}.txt?token=secret".replace("//", "//ann:secret@", 1) for name in "ab"]
    assert not run_stage(source="files", train_files=urls[:1], val_files=urls[1:])
    assert outputs(tmp_path)[2]["provenance"][0]["url"] == redact(urls[0]) != urls[0]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "params.yaml"]
    assert len(written) > 5 and not [path for path in written if b"secret" in path.read_bytes()]
    assert "secret" not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_killed_stage_loses_nothing(start_stage, run_stage, tmp_path):
    """The stage is killed while it writes train.txt; the next run gives the same files as one that was not killed."""
    settings = {"source": "stories", "train_bytes": 3_000_000, "val_bytes": 100_000}
    assert not run_stage(**settings)
    expected = outputs(tmp_path)
    process = start_stage(**settings)
    part = tmp_path / "unfinished/train-00000.txt"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 500_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert part.exists() and not (tmp_path / "raw/manifest.json").exists()
    assert not run_stage(**settings)
    assert outputs(tmp_path) == expected
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["manifest.json", "train.txt", "val.txt"]
