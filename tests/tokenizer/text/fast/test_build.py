"""Compiling, storing and loading kernels, in new processes with their own cache folder."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lm.tokenizer.text.fast import library
from lm.tokenizer.text.fast.build import Library, Pinned, can_load

PROJECT = Path(__file__).resolve().parents[4]
COMPILING = "compiling the kernels in lm.tokenizer.text.fast, once on this machine ..."

CALL_A_KERNEL = """
import sys
import numpy as np
from lm.tokenizer.text.fast import library
assert library.load().find_invalid_utf8(np.zeros(200, np.uint8), 10) == 10
"""
TOKENIZER = """
import sys
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer
tokenizer = Tokenizer(build_vocab([(b"t", b"h")], []), [(b"t", b"h")])
"""
PRINT_COMPILERS = """
print(*sorted({"numba", "llvmlite"} & set(sys.modules)))
"""


def run(code: str, cache: Path | None) -> subprocess.CompletedProcess[str]:
    """Run code with a cache folder, or with the user's."""
    environment = os.environ | ({} if cache is None else {"XDG_CACHE_HOME": str(cache)})
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )


def call_without_compiler(stored: Path, seconds: float = 0) -> str:
    """Return code that calls a kernel, with the compiler replaced by its earlier output to save time."""
    return f"""
import sys, time
from lm.tokenizer.text.fast.build import Library
def compile_(self, machine):
    print("compiled", file=sys.stderr)
    time.sleep({seconds})
    return open({str(stored)!r}, "rb").read()
assert callable(Library._compile)
Library._compile = compile_
{CALL_A_KERNEL}"""


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A cache folder that was empty, and the process that compiled into it."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(CALL_A_KERNEL, cache)


@pytest.fixture(scope="module")
def compiled_file(first_run: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the compiler, without the checksum at the beginning of the file in the cache."""
    (path,) = files_in(first_run[0])
    content = path.read_bytes()
    assert hashlib.sha256(content[32:]).digest() == content[:32]
    bare = tmp_path_factory.mktemp("code") / "code"
    bare.write_bytes(content[32:])
    return bare


def files_in(cache: Path) -> list[Path]:
    """Return the files of machine code."""
    return [path for path in (cache / "lm").iterdir() if path.suffix != ".lock"]


@pytest.fixture
def cache(first_run: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the cache folder, to be damaged."""
    return Path(shutil.copytree(first_run[0], tmp_path / "cache"))


def test_the_first_process_compiles_and_says_so(first_run) -> None:
    cache, result = first_run
    assert (result.returncode, result.stderr) == (0, COMPILING + "\n")
    assert len(files_in(cache)) == 1
    assert not list(cache.rglob("*.part"))


def test_the_next_process_loads_the_code_without_numba(first_run) -> None:
    cache, _ = first_run
    before = [(path, path.stat().st_mtime_ns) for path in files_in(cache)]
    result = run(CALL_A_KERNEL + PRINT_COMPILERS, cache)
    assert (result.returncode, result.stdout, result.stderr) == (0, "llvmlite\n", "")
    assert [(path, path.stat().st_mtime_ns) for path in files_in(cache)] == before


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_file_is_compiled_again(cache: Path, compiled_file: Path, damage: str) -> None:
    (path,) = files_in(cache)
    good = path.read_bytes()
    if damage == "changed":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    else:
        path.write_bytes(good[: len(good) // 2 if damage == "truncated" else 0])
    result = run(call_without_compiler(compiled_file), cache)
    assert (result.returncode, result.stderr) == (0, "compiled\n")
    assert path.read_bytes() == good


def test_an_unwritable_folder_only_causes_a_message(tmp_path: Path, compiled_file: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(call_without_compiler(compiled_file), tmp_path / "file")
    assert result.returncode == 0, result.stderr
    message, compiled = result.stderr.splitlines()
    assert message.startswith("the compiled kernels will not be stored: ") and "cannot be written" in message
    assert compiled == "compiled"


def test_processes_that_start_at_the_same_time_compile_once(tmp_path: Path, compiled_file: Path) -> None:
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(run, [call_without_compiler(compiled_file, seconds=0.5)] * 3, [tmp_path] * 3))
    assert [result.returncode for result in results] == [0, 0, 0]
    assert sorted(result.stderr for result in results) == ["", "", "compiled\n"]


def test_threads_that_start_at_the_same_time_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(self: Library) -> SimpleNamespace:
        loaded.append(SimpleNamespace())
        time.sleep(0.1)  # the other thread asks meanwhile
        return loaded[-1]

    monkeypatch.setattr(Library, "_load", load)
    fresh = Library("lm.tokenizer.text.fast", "utf8")
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(fresh.load) for _ in range(2))
    assert first.result() is second.result() is loaded[0]
    assert len(loaded) == 1


def test_short_inputs_neither_compile_nor_load_kernels(tmp_path: Path) -> None:
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
    result = run(TOKENIZER + code + PRINT_COMPILERS, tmp_path / "cache")
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("kernels")
def test_many_short_inputs_load_kernels_but_do_not_compile_them(tmp_path: Path) -> None:
    code = """
from lm.tokenizer.encoding.fast import library
for _ in range(100):
    assert tokenizer.encode("the cat. " * 500)[:3] == [256, 68, 220]
print("loaded" if library.is_loaded() else "not loaded")
"""
    for cache, expected in ((tmp_path, "not loaded\n"), (None, "loaded\n")):
        result = run(TOKENIZER + code, cache)
        assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")
    assert not (tmp_path / "lm").exists()


def test_a_kernel_checks_its_arrays(kernels: SimpleNamespace) -> None:
    assert can_load() and library.is_compiled() and library.is_loaded()
    good = np.zeros(200, np.uint8)
    assert kernels.find_invalid_utf8(good, 10) == 10
    assert kernels.find_invalid_utf8(Pinned(good), 10) == 10
    with pytest.raises(ValueError, match="contiguous"):
        Pinned(good[::2])
    pinned = Pinned(good.astype(np.uint32))
    for wrong in (good.astype(np.int8), good.astype(np.uint32), np.zeros(400, np.uint8)[::2], bytes(200), None, pinned):
        with pytest.raises(ctypes.ArgumentError):
            kernels.find_invalid_utf8(wrong, 10)


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_long_texts_are_encoded_in_plain_python_without_a_compiler(tmp_path: Path, missing: str) -> None:
    code = f"import sys\nsys.modules[{missing!r}] = None" + TOKENIZER
    code += r"""
assert tokenizer.encode_array("the 'th\n" * 160_000).tolist() == [256, 68, 220, 6, 256, 198] * 160_000
"""
    result = run(code, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "lm").exists()
