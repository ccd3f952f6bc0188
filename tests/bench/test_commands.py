import re
import runpy
import sys
from pathlib import Path

import pytest

MODULES = [
    "bench.tokenizer",
    "bench.tokenizer.scaling",
    "bench.tokenizer.long_pre_tokens",
    "bench.training",
    "bench.training.time_to_loss",
    "bench.training.profile_step",
    "bench.generation",
    "bench.generation.scaling",
    "bench.attention",
    "bench.attention.errors",
    "bench.training.one_process",
]


# runpy warns about modules that another test has imported already.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
def test_every_command_explains_itself_and_is_in_the_readme(
    module: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module(module, run_name="__main__")
    assert exit_info.value.code == 0
    usage, _, text = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(f"usage: python -m {module} ")
    assert re.search(rf"\n    (python|torchrun .*) -m {module} ", text)
    assert f"-m {module}" in (project / "bench" / "README.md").read_text(encoding="utf-8")
