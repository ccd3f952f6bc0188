"""The whole stage, without the hub."""

import hashlib
import json

import pytest


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
        entry = {"bytes": size, "documents": documents, "sha256": hashlib.sha256(data).hexdigest()}
        assert manifest["splits"][name].items() >= entry.items()
        assert (metrics[f"{name}_bytes"], metrics[f"{name}_documents"]) == (size, documents)
    assert metrics["entropy_bits_per_byte"] == manifest["splits"]["val"]["entropy_bits"] / metrics["val_bytes"] > 0
    assert (manifest["source"], manifest["provenance"]) == ("stories", [])
    assert not run_stage(**settings)
    assert outputs(tmp_path) == first
    assert not run_stage(**settings, seed=2)
    assert outputs(tmp_path)[:2] != first[:2]


def test_files(run_stage, tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(f"Document {number}." for number in range(200)))
    assert not run_stage(source="files", train_files=["*.txt"], val_fraction=0.1)
    train, val, manifest, metrics = outputs(tmp_path)
    assert sorted((train + val).decode().split("<|endoftext|>")[:-1]) == sorted(f"Document {n}." for n in range(200))
    assert set(metrics) == {"train_bytes", "train_documents", "val_bytes", "val_documents"}
    assert [entry["path"] for entry in manifest["provenance"]] == ["a.txt"]


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
