"""Two processes that each prepare a share of a corpus get the same tokens as one process that prepares all of it."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import join_tokens, open_tokens
from tests.pipeline.conftest import PROJECT, environment


def machine(folder: Path, documents: list[str]) -> Path:
    """The folder of one machine: its share of the text, and a params.yaml that reads it."""
    folder.mkdir()
    text = folder / "share.txt"
    text.write_text(END_OF_TEXT.join(documents), encoding="utf-8")
    yaml = YAML()
    params = yaml.load(PROJECT / "params.yaml")
    params["data"].update(source="files", train_files=[str(text)], train_bytes=0, val_bytes=0, val_fraction=0.1)
    params["tokenizer"]["vocab_size"] = 400
    yaml.dump(params, folder / "params.yaml")
    return folder


def start(stage: str, folder: Path, **flags: Path) -> subprocess.Popen[str]:
    paths = {"params": folder / "params.yaml", "raw": folder / "raw", "metrics": folder / f"{stage}.json", **flags}
    command = [sys.executable, "-m", f"stages.{stage}"]
    command += [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    return subprocess.Popen(command, cwd=PROJECT, env=environment(), stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error


def test_two_processes_prepare_shares_that_join_to_the_whole(tmp_path: Path) -> None:
    documents = [story.text for story in itertools.islice(stories(1), 120)]
    first = machine(tmp_path / "first", documents[:70])
    second = machine(tmp_path / "second", documents[70:])
    whole = machine(tmp_path / "whole", documents)
    machines = (first, second, whole)
    finish(*[start("download", folder, cache=folder / "cache") for folder in machines])
    tokenizer = tmp_path / "tokenizer"  # trained on the first share, and used for all
    finish(start("train_bpe", first, tokenizer=tokenizer, timing=tmp_path))
    encoding = [
        start("encode_memmap", folder, tokenizer=tokenizer, tokens=folder / "tokens", timing=folder)
        for folder in (first, second)
    ]
    finish(*encoding)
    finish(start("encode_memmap", whole, tokenizer=tokenizer, tokens=whole / "tokens", timing=whole))

    joined = tmp_path / "joined"
    manifest = join_tokens([first / "tokens", second / "tokens"], joined)
    assert manifest == json.loads((whole / "tokens/manifest.json").read_text())
    assert manifest["splits"]["train"]["documents"] + manifest["splits"]["val"]["documents"] == 120
    end_of_text_id = Tokenizer.load(tokenizer).end_of_text_id
    for split in ("train", "val"):
        assert (joined / f"{split}.bin").read_bytes() == (whole / f"tokens/{split}.bin").read_bytes()
        tokens, facts = open_tokens(joined, split, Tokenizer.load(tokenizer).hash)
        joint = open_tokens(first / "tokens", split, None)[1]["count"]
        assert 0 < joint < facts["count"] == len(tokens)
        assert tokens[joint - 1] == tokens[-1] == end_of_text_id
