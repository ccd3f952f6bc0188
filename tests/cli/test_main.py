import re
import subprocess
import sys

import pytest

from lm.cli.main import VERBS, main, make_parser
from lm.errors import UserError


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lm", *arguments])
    main()


def test_help_and_small_verbs_import_no_large_library():
    program = (
        "import sys, contextlib, lm.cli.main as cli\n"
        "for arguments in (['--help'], ['train', '--help'], ['preset']):\n"
        "    sys.argv = ['lm', *arguments]\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        cli.main()\n"
        "large = {'torch', 'numpy', 'numba', 'matplotlib', 'pandas', 'huggingface_hub', 'datasets', 'dvc'}\n"
        "assert not large & sys.modules.keys(), large & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("prog", ["lm", "python -m lm"])
def test_usage_shows_the_name_that_the_program_was_called_by(prog):
    assert make_parser(prog).format_usage().startswith(f"usage: {prog} [-h] [--version] VERB")


def test_python_m_lm_shows_its_own_name():
    shown = subprocess.run([sys.executable, "-m", "lm", "--help"], check=True, capture_output=True, text=True).stdout
    assert shown.startswith("usage: python -m lm ") and all(f"\n    {verb}" in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_an_example(verb, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, verb, "--help")
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert re.search(rf"Examples?:\n  lm .*\b{verb}\b", shown)
    assert max(map(len, shown.splitlines())) <= 80


def test_version(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, "--version")
    assert exit_.value.code == 0
    assert re.fullmatch(r"lm (\d+\.\d+\.\d+|\(not installed\))\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [[], ["train"], ["generate", "--top-k", "many"], ["export"], ["join", "out"]])
def test_wrong_usage_has_status_2(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, *arguments)
    assert exit_.value.code == 2 and "usage: lm" in capsys.readouterr().err


def test_a_prompt_that_looks_like_an_option_is_explained(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, "generate", "-Hello")
    message = "unrecognized arguments: -Hello; put -- before a text that begins with a hyphen\n"
    assert exit_.value.code == 2 and capsys.readouterr().err.endswith(message)
    assert make_parser("lm").parse_args(["generate", "--", "-Hello"]).prompt == "-Hello"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preset", "small", "b\nc"], r"unrecognized arguments: b\nc"),
        (["serve", "--m=a\nb"], r"ambiguous option: --m=a\nb could match"),
        (["generate", "--top-k", "a\nb"], r"argument --top-k: invalid int value: 'a\nb'"),
    ],
)
def test_a_wrong_argument_is_quoted_in_one_line(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lm") and f" error: {message}" in last


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (UserError("data/model: missing"), 1, "error: data/model: missing\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_an_error_of_the_user_and_ctrl_c_have_their_status(raised, status, message, monkeypatch, capsys):
    def run(args):
        raise raised

    monkeypatch.setattr(VERBS["report"], "run", run)
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, "report")
    assert (exit_.value.code, capsys.readouterr().err) == (status, message)
