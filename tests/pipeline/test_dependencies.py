"""Two lists that must agree: what a stage imports, and what dvc.yaml says that it depends on."""

import ast
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
STAGES = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]


def imported(script: Path) -> set[str]:
    """The modules of the project that a script imports, directly or not, as paths.

    Left out are the config.py modules (their values are tracked as params) and the rooms' __init__.py (docstrings).
    """
    found: set[str] = set()
    waiting = [script]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                path = PROJECT / (name.replace(".", "/") + ".py")
                relative = path.relative_to(PROJECT).as_posix()
                if name.startswith("lm.") and path.exists() and path.name != "config.py" and relative not in found:
                    found.add(relative)
                    waiting.append(path)
    return found


def script_of(stage: str) -> str:
    """The script that `python -m stages.NAME` runs."""
    module = next(word for word in shlex.split(STAGES[stage]["cmd"]) if word.startswith("stages."))
    return module.replace(".", "/") + ".py"


def modules_in_deps(stage: str) -> set[str]:
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith("lm/")}


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_imports(stage):
    script = script_of(stage)
    assert script in STAGES[stage]["deps"]
    grammar = {dep for dep in STAGES[stage]["deps"] if dep.startswith("lm/") and not dep.endswith(".py")}
    assert modules_in_deps(stage) - grammar == imported(PROJECT / script)
    assert grammar == ({"lm/corpus/stories.txt"} if stage == "download" else set())


def test_rooms_import_nothing():
    for path in PROJECT.glob("lm/**/__init__.py"):
        assert all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text(encoding="utf-8")).body), path


def test_every_script_is_a_stage():
    scripts = {script_of(stage) for stage in STAGES}
    assert scripts == {path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("stages/*.py")}


def test_editing_a_sampler_does_not_retrain():
    assert not any(dep.startswith("lm/generation/") for dep in modules_in_deps("train") | modules_in_deps("ablate"))


def test_nothing_reaches_down_into_a_lower_room():
    rooms = ["errors", "atomic", "corpus", "tokenizer", "tokens", "model", "training", "generation", "export"]
    rooms += ["studies", "serving"]
    for path in PROJECT.glob("lm/*/*.py"):
        own = rooms.index(path.parent.name)
        for name in imported(path):
            room = Path(name).parts[1].removesuffix(".py")
            assert room == "config" or rooms.index(room) <= own, f"{path} imports {name}"
