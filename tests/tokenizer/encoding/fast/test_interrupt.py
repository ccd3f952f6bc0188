"""Ctrl-C while a long text is being encoded, or a tokenizer is trained on it, ends the work at once."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.tokenizer.tokenizer import Tokenizer

PROJECT = Path(__file__).resolve().parents[4]

ENCODE = """
import sys, threading, time
from pathlib import Path
from tqdm import tqdm
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

tqdm.monitor_interval = 0  # starts no thread
folder, method, num_threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tokenizer = Tokenizer.load(folder)
path = folder / "text.txt"
text = path.read_text(encoding="utf-8")
texts = [text[begin : begin + 4096] for begin in range(0, len(text), 4096)]
tokenizer.encode_array(text[:2_000_000], num_threads=num_threads)
calls = {
    "file": lambda: sum(map(len, tokenizer.encode_file(path, num_threads))),
    "text": lambda: tokenizer.encode_array(text, num_threads=num_threads),
    "documents": lambda: tokenizer.encode_batch(texts, num_threads=num_threads),
    "training": lambda: train_bpe(path, 1000, ["<|endoftext|>"], num_threads=num_threads),
}
print("ready", flush=True)
try:
    while True:
        calls[method]()
except KeyboardInterrupt:
    print(threading.active_count(), time.time(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("num_threads", ["1", "3"])
@pytest.mark.parametrize("method", ["file", "text", "documents", "training"])
def test_ctrl_c_ends_the_work_at_once(
    tokenizer: Tokenizer, text: str, tmp_path: Path, method: str, num_threads: str
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "text.txt").write_text(text * (200_000_000 // len(text)), encoding="utf-8", newline="")
    command = [sys.executable, "-c", ENCODE, str(tmp_path), method, num_threads]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        begin = time.time()
        num_left, end = process.stdout.readline().split()
    assert process.returncode == 0
    assert num_left == "1", "the other threads should have ended"
    assert float(end) - begin < 1, "the whole text takes much longer"
