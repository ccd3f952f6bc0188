"""The machine code on disk, seen by processes of their own: this one has the kernels already."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lm.tokenizer.text.fast.build import can_load, is_compiled, is_loaded

PROJECT = Path(__file__).resolve().parents[3]
COMPILING = "compiling the tokenizer, once for this machine"

TOKENIZER = """
import sys
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.encoding.vocab import build_vocab
tokenizer = Tokenizer(build_vocab([(b"t", b"h")], []), [(b"t", b"h")])
"""
# More than a megabyte goes through kernels.
ENCODE = """
assert tokenizer.encode_array("the 'th\\n" * 160_000).tolist() == [256, 68, 220, 6, 256, 198] * 160_000
"""
NAME_COMPILERS = """
print(*sorted({"numba", "llvmlite"} & set(sys.modules)))
"""


def run(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )


def without_a_compiler(stored: Path, seconds: float = 0) -> str:
    """The same, with what the compiler once made in its place: the compiler itself takes many seconds."""
    return f"""
import sys, time
from lm.tokenizer.text.fast import build
def compile_(*arguments):
    print("compiled", file=sys.stderr)
    time.sleep({seconds})
    return open({str(stored)!r}, "rb").read()
assert callable(build._compile)
build._compile = compile_
{TOKENIZER + ENCODE}"""


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An empty cache folder, filled by a process that compiles."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(TOKENIZER + ENCODE, cache)


@pytest.fixture(scope="module")
def code_file(first_run: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the compiler made, without the checksum in front of it."""
    (path,) = files_in(first_run[0])
    content = path.read_bytes()
    assert hashlib.sha256(content[32:]).digest() == content[:32]
    bare = tmp_path_factory.mktemp("code") / "code"
    bare.write_bytes(content[32:])
    return bare


def files_in(cache: Path) -> list[Path]:
    """The files of machine code."""
    return [path for path in (cache / "lm").iterdir() if path.suffix != ".lock"]


@pytest.fixture
def cache(first_run: tuple[Path, object], tmp_path: Path) -> Path:
    """A cache folder that holds machine code, to be damaged."""
    return Path(shutil.copytree(first_run[0], tmp_path / "cache"))


def test_the_first_process_compiles_and_says_so(first_run) -> None:
    cache, result = first_run
    assert result.returncode == 0, result.stderr
    assert COMPILING in result.stderr
    assert len(files_in(cache)) == 1
    assert not list(cache.rglob("*.part"))


def test_the_next_process_loads_it_without_a_compiler(first_run) -> None:
    cache, _ = first_run
    before = [(path, path.stat().st_mtime_ns) for path in files_in(cache)]
    result = run(TOKENIZER + ENCODE + NAME_COMPILERS, cache)
    assert (result.returncode, result.stdout, result.stderr) == (0, "llvmlite\n", "")
    assert [(path, path.stat().st_mtime_ns) for path in files_in(cache)] == before


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_again(cache: Path, code_file: Path, damage: str) -> None:
    (path,) = files_in(cache)
    good = path.read_bytes()
    if damage == "changed":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    else:
        path.write_bytes(good[: len(good) // 2 if damage == "cut" else 0])
    result = run(without_a_compiler(code_file), cache)
    assert (result.returncode, result.stderr) == (0, "compiled\n")
    assert path.read_bytes() == good


def test_a_folder_that_cannot_be_written_costs_only_a_message(tmp_path: Path, code_file: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(without_a_compiler(code_file), tmp_path / "file")
    assert result.returncode == 0, result.stderr
    message, compiled = result.stderr.splitlines()
    assert message.startswith("the compiled tokenizer will not be kept: ") and "cannot be written" in message
    assert compiled == "compiled"


def test_processes_that_start_together_compile_once(tmp_path: Path, code_file: Path) -> None:
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(run, [without_a_compiler(code_file, seconds=0.5)] * 3, [tmp_path] * 3))
    assert [result.returncode for result in results] == [0, 0, 0]
    assert sorted(result.stderr for result in results) == ["", "", "compiled\n"]


def test_small_inputs_never_wait_for_a_compiler(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    code = f"""
from pathlib import Path
from lm.tokenizer.training.bpe import train_bpe
path = Path({str(tmp_path / "text.txt")!r})
train_bpe(path, 300, ["<|endoftext|>"])
ids = tokenizer.encode("the cat sat<|endoftext|>")
ids += tokenizer.encode_array("the mat").tolist()
ids += tokenizer.encode_batch(["the", "mat"])[0].tolist()
ids += list(tokenizer.encode_iterable(["the ", "mat"]))
ids += next(tokenizer.encode_file(path)).tolist()
tokenizer.decode(ids)
"""
    result = run(TOKENIZER + code + NAME_COMPILERS, tmp_path / "cache")
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr
    assert not (tmp_path / "cache").exists()


def test_many_small_inputs_are_worth_loading_kernels_but_not_compiling_them(tmp_path: Path, first_run) -> None:
    encode = """
for _ in range(100):
    assert tokenizer.encode("the cat. " * 500)[:3] == [256, 68, 220]
print("loaded" if is_loaded() else "not loaded")
"""
    code = TOKENIZER + "from lm.tokenizer.text.fast.build import is_loaded" + encode
    for cache, expected in ((tmp_path, "not loaded\n"), (first_run[0], "loaded\n")):
        result = run(code, cache)
        assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")
    assert not (tmp_path / "lm").exists()


def test_the_arrays_of_a_kernel_are_checked(kernels: SimpleNamespace) -> None:
    assert can_load() and is_compiled() and is_loaded()
    good = np.zeros(200, np.uint8)
    assert kernels.find_invalid_utf8(good, 10) == 10
    for wrong in (good.astype(np.int8), good.astype(np.uint32), np.zeros(400, np.uint8)[::2], bytes(200), None):
        with pytest.raises(ctypes.ArgumentError):
            kernels.find_invalid_utf8(wrong, 10)


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_without_a_compiler_everything_goes_the_plain_way(tmp_path: Path, missing: str) -> None:
    hidden = f"import sys\nsys.modules[{missing!r}] = None"
    result = run(hidden + TOKENIZER + ENCODE, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "lm").exists()
