"""Runs of the pipeline in small files."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lm.corpus.config import END_OF_TEXT
from lm.report.run import Run
from lm.tokenizer.reference import train
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.manifest import sampled_sha256, write_manifest

DOCUMENTS = ["Once upon a time,\nthe café had <b>one</b> & only 'cat'. " * 4, "Twice, the cat napped.", "é"]


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A tokenizer of 300 tokens that has learned from DOCUMENTS."""
    vocab, merges = train("".join(text + END_OF_TEXT for text in DOCUMENTS), 300, [END_OF_TEXT])
    return Tokenizer(vocab, merges, [END_OF_TEXT])


@pytest.fixture
def planned_run(tmp_path, project) -> Run:
    """A run of which nothing but params.yaml exists: that of the laptop preset."""
    shutil.copy(project / "params.yaml", tmp_path / "params.yaml")
    return Run(tmp_path)


@pytest.fixture
def encoded_run(planned_run, small_tokenizer) -> Run:
    """A run that has encoded DOCUMENTS as its val split."""
    data, metrics = planned_run.folder / "data", planned_run.folder / "metrics"
    metrics.mkdir()
    small_tokenizer.save(data / "tokenizer")
    write_tokens(data / "tokens", small_tokenizer, DOCUMENTS)
    count = len(planned_run.tokenizer.encode("".join(text + END_OF_TEXT for text in DOCUMENTS)))
    mean = sum(len(text.encode()) for text in DOCUMENTS) / count
    values = {
        "train_tokens": 5000,
        "train_bytes_per_token": 3.0,
        "vocabulary_use": 0.5,
        "val_tokens": count,
        "val_bytes_per_token": mean,
    }
    (metrics / "tokens.json").write_text(json.dumps(values))
    return planned_run


def write_tokens(folder: Path, tokenizer: Tokenizer, documents: list[str]) -> None:
    """Write the token files of the val split, as the stage encode_memmap does."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.array(tokenizer.encode("".join(text + END_OF_TEXT for text in documents)), tokenizer.dtype)
    path = folder / "val.bin"
    path.write_bytes(ids.tobytes())
    shard = {
        "count": len(ids),
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "sampled_sha256": sampled_sha256(path),
    }
    num_bytes = sum(len(text.encode()) for text in documents)
    entry = {"bytes": num_bytes, "documents": len(documents), "count": len(ids), "shards": [shard]}
    write_manifest(folder, tokenizer, {"val": entry})
