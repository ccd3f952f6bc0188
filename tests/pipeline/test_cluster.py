"""The pipeline on a Ray cluster of two nodes, which share no files but those that Ray sends."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lm.tokens.manifest import read_manifest
from tests.pipeline.conftest import Run, environment, run_in

pytestmark = pytest.mark.slow


def set_parameters(folder: Path, **sections: dict[str, object]) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for section, values in sections.items():
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")


def prepare(folder: Path, **arguments: str) -> dict[str, bytes]:
    """Run the stages that prepare the tokens in a new folder, and return their outputs."""
    run = run_in(folder)
    flags = {
        "download": "--raw data/raw --cache data/.download --metrics metrics/download.json",
        "train_bpe": "--raw data/raw --tokenizer data/tokenizer --metrics metrics/tokenizer.json --timing data/.timing",
        "encode_memmap": "--raw data/raw --tokenizer data/tokenizer --tokens data/tokens --metrics metrics/tokens.json "
        "--timing data/.timing",
    }
    for stage, words in flags.items():
        run("python", "-m", f"stages.{stage}", "--unfinished", f"data/.unfinished/{stage}", *words.split())
    rooms = [folder / "data" / name for name in ("raw", "tokenizer", "tokens")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for room in rooms for path in room.iterdir()}


@pytest.fixture
def small_shards(changed: Path) -> Path:
    """The project with shards of 10 kB, and a corpus of seven files."""
    shards = changed / "lm/shards.py"
    shards.write_text(shards.read_text().replace("256_000_000", "10_000"))
    text = (changed / "data/raw/train.txt").read_text().split("<|endoftext|>")[:-1]
    (changed / "text").mkdir(exist_ok=True)
    for index in range(7):
        (changed / f"text/{index}.txt").write_text("<|endoftext|>".join(text[index::7]))
    files = {"source": "files", "train_files": ["text/*.txt"], "train_bytes": 0, "val_bytes": 0, "val_fraction": 0.1}
    set_parameters(changed, data=files)
    return changed


def test_the_tokens_are_those_of_one_machine(small_shards: Path, two_nodes) -> None:
    expected = prepare(small_shards)
    assert len(read_manifest(small_shards / "data/tokens")["splits"]["train"]["shards"]) > 3
    set_parameters(small_shards, runtime={"cluster": two_nodes.address})
    assert prepare(small_shards) == expected


def test_a_file_that_cannot_be_read_is_named(small_shards: Path, two_nodes) -> None:
    (small_shards / "text/5.txt").write_bytes(b"One.\xff")
    set_parameters(small_shards, runtime={"cluster": two_nodes.address})
    flags = (
        "--raw data/raw --cache data/.download --metrics metrics/download.json --unfinished data/.unfinished/download"
    )
    result = run_in(small_shards)("python", "-m", "stages.download", *flags.split(), fails=True)
    assert "error: text/5.txt: not UTF-8 text at byte 4 (0xff)" in result.stderr.splitlines()[-1]
    assert not (small_shards / "data/raw/manifest.json").exists()


def cell_command(folder: Path) -> list[str]:
    plan = next((folder / "data/plan/ablate").glob("*.json"))
    flags = f"--plan {plan} --tokenizer data/tokenizer --tokens data/tokens --checkpoints data/.checkpoints "
    flags += "--tracking data/.tracking --metrics cell/metrics.json --curve cell/curve.csv"
    return [sys.executable, "-m", "stages.cell", *flags.split()]


def results(folder: Path) -> tuple[object, str]:
    return json.loads((folder / "cell/metrics.json").read_text()), (folder / "cell/curve.csv").read_text()


def test_a_cell_continues_on_another_node(changed: Path, run: Run, two_nodes) -> None:
    set_parameters(
        changed,
        ablate={"points": ["16x1-512000"]},
        runtime={"checkpoint_every": 1000, "cluster": two_nodes.address},
    )
    run("python", "-m", "stages.plan", "--plan", "data/plan")
    command = cell_command(changed)
    process = start(command, changed)
    mirror = changed / "data/.checkpoints"
    killed = False
    while process.poll() is None:
        time.sleep(0.2)
        if not killed and list(mirror.glob("*16x1*/*/step-*/index.json")):
            # The node that trains is the one with a process of stages.cell below its raylet.
            os.kill(worker_of(process.pid), signal.SIGKILL)
            killed = True
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert killed and "continuing from the last checkpoint" in output
    on_cluster = results(changed)
    assert not list(mirror.glob("*16x1*"))

    set_parameters(changed, runtime={"cluster": "none"})
    run(*command)
    assert results(changed) == on_cluster


def start(command: list[str], folder: Path):
    import subprocess

    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def worker_of(driver: int) -> int:
    """The process of Ray that has started the training stage for the stage `driver`."""
    import psutil

    for process in psutil.process_iter():
        command = process.cmdline()
        if "lm.studies.remote_cell" in command:
            return int(command[command.index("lm.studies.remote_cell") + 1])
    raise AssertionError("no cell is trained")
