import pytest

from lm.errors import UserError, exit_cleanly


def test_a_user_error_is_one_line_and_status_1(capsys):
    def main() -> None:
        raise UserError("params.yaml: cannot be read")

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert exit.value.code == "error: params.yaml: cannot be read"  # which the interpreter prints, with status 1


def test_an_interrupt_is_status_130(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        exit_cleanly(main)
    assert exit.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_any_other_error_is_a_bug_and_keeps_its_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_cleanly(main)
