import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm.errors import UserError, exit_cleanly, quote

PROJECT = Path(__file__).resolve().parents[1]


def test_a_user_error_is_one_line_and_status_1(capsys):
    def main() -> None:
        raise UserError("params.yaml: cannot be read")

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert exit.value.code == 1
    assert capsys.readouterr().err == "error: params.yaml: cannot be read\n"


@pytest.mark.parametrize(("reason", "shown"), [("", "an allocation failed"), ("of 9\nbytes", r"of 9\nbytes")])
def test_a_lack_of_memory_is_one_line_and_status_1(capsys, reason, shown):
    def main() -> None:
        raise MemoryError(reason)

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert (exit.value.code, capsys.readouterr().err) == (1, f"error: not enough memory ({shown})\n")


def test_an_interrupt_is_status_130(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert exit.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_interrupt_of_the_imports_shows_no_traceback(tmp_path):
    (tmp_path / "yaml.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")  # lm.config imports it
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])}
    command = [sys.executable, "-m", "stages.train", "--help"]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


def test_a_closed_pipe_gives_no_traceback():
    script = "from lm.errors import exit_cleanly\nexit_cleanly(lambda: [print(i, flush=True) for i in range(100_000)])"
    result = subprocess.run(f"{sys.executable} -c '{script}' | head -n 1", shell=True, capture_output=True, text=True)
    assert result.stdout == "0\n" and result.stderr == ""


def test_without_a_stdout_the_output_is_discarded():
    script = "import sys; from lm.errors import exit_cleanly; exit_cleanly(lambda: sys.stdout.flush())"
    result = subprocess.run(f"{sys.executable} -c '{script}' >&-", shell=True, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert subprocess.run(f"{sys.executable} -c '{script}' >&- 2>&-", shell=True).returncode == 0


FULL_DISK = "/dev/full"


@pytest.mark.skipif(not Path(FULL_DISK).exists(), reason=f"no {FULL_DISK}")
@pytest.mark.parametrize("flush", [False, True])
def test_a_full_disk_is_one_line_and_status_1(flush):
    script = f"from lm.errors import exit_cleanly\nexit_cleanly(lambda: print('text', flush={flush}))"
    with open(FULL_DISK, "w") as full:
        result = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: output: cannot be written (No space left on device); free some space\n"


@pytest.mark.skipif(not Path(FULL_DISK).exists(), reason=f"no {FULL_DISK}")
@pytest.mark.parametrize(
    ("main", "status", "line"),
    [
        ("print('text')", 1, "error: output: cannot be written (No space left on device); free some space\n"),
        ("argparse.ArgumentParser().parse_args(['-h'])", 1, "error: output: cannot be written (No space left on "),
        ("exec('raise UserError(str(1))')", 1, "error: 1\n"),
        ("argparse.ArgumentParser().parse_args(['-x'])", 2, "usage: "),
    ],
)
def test_a_status_of_0_means_that_everything_was_written(main, status, line):
    script = f"import argparse\nfrom lm.errors import UserError, exit_cleanly\nexit_cleanly(lambda: {main})"
    with open(FULL_DISK, "w") as full:
        result = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
        both = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=full)
    assert (result.returncode, both.returncode) == (status, status)
    assert result.stderr.startswith(line)


def test_an_output_that_is_not_writable_is_one_line_and_status_1():
    script = "from lm.errors import exit_cleanly\nexit_cleanly(lambda: print('text'))"
    with open(os.devnull) as unwritable:
        result = subprocess.run([sys.executable, "-c", script], stdout=unwritable, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "error: output: cannot be written (Bad file descriptor)\n")


def test_characters_that_stdout_cannot_represent_are_replaced():
    script = "from lm.errors import exit_cleanly\nexit_cleanly(lambda: print('caf\\xe9 \\xb1 \\ud800 end'))"
    for encoding, expected in (("ascii", b"caf? ? ? end\n"), ("utf-8", "café ± ? end\n".encode())):
        env = os.environ | {"PYTHONIOENCODING": encoding}
        assert subprocess.run([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE).stdout == expected


def test_an_encoding_error_elsewhere_keeps_its_traceback():
    with pytest.raises(UnicodeEncodeError):
        exit_cleanly(lambda: "\ud800".encode())


def test_any_other_exception_keeps_its_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_cleanly(main)


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(UserError("a\nb\r\x1b[2J\u2028\x85 é 漢 \ud800")) == r"a\nb\r\x1b[2J\u2028\x85 é 漢 \ud800"
    long = str(UserError("start " + "x" * 1_000_000 + " end"))
    assert len(long) == 2000 and long.startswith("start ") and long.endswith(" end")


def test_a_quoted_value_is_one_line_and_short():
    assert quote("a\nb'") == '"a\\nb\'"'
    assert quote({"k": "漢\u2029"}) == r"{'k': '漢\u2029'}"
    assert quote("a" * 100, limit=20) == "'aaaaaa [...] aaaaa'"
    assert len(quote(list(range(100_000)))) == 80
