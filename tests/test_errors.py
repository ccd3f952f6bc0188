import subprocess
import sys

import pytest

from lm.errors import UserError, exit_cleanly


def test_a_user_error_is_one_line_and_status_1(capsys):
    def main() -> None:
        raise UserError("params.yaml: cannot be read")

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert exit.value.code == "error: params.yaml: cannot be read"  # the interpreter prints it and exits with status 1


def test_an_interrupt_is_status_130(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert exit.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_closed_pipe_gives_no_traceback():
    script = "from lm.errors import exit_cleanly\nexit_cleanly(lambda: [print(i, flush=True) for i in range(100_000)])"
    result = subprocess.run(f"{sys.executable} -c '{script}' | head -n 1", shell=True, capture_output=True, text=True)
    assert result.stdout == "0\n" and result.stderr == ""


def test_any_other_exception_keeps_its_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_cleanly(main)
