"""Two lists that must agree: what a stage imports, and the dependencies that dvc.yaml declares for it."""

import ast
import shlex
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
STAGES = {
    (file.relative_to(PROJECT).as_posix(), name): stage
    for file in (PROJECT / "dvc.yaml", *sorted(PROJECT.glob("studies/*/dvc.yaml")))
    for name, stage in YAML(typ="safe").load(file)["stages"].items()
}
PIPELINE = [stage for stage in STAGES if stage[0] == "dvc.yaml"]

# From top to bottom. A room imports only from itself and from the rooms above it; `config` is apart from this order.
ROOMS = (
    "errors",
    "atomic",
    "schema",
    "yaml12",
    "device",
    "memory",
    "pictures",
    "corpus",
    "tokenizer",
    "tokens",
    "model",
    "generation",
    "evaluation",
    "training",
    "export",
    "studies",
    "serving",
    "presets",
    "report",
    "cli",
)


@cache
def imported(script: Path) -> set[str]:
    """The paths of the project's modules that `script` imports, directly or not, inside functions too.

    The config.py modules are left out, because dvc.yaml tracks their values as params, and so are the __init__.py files
    that only hold a docstring.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        for name in imported_names(waiting.pop()):
            if name.startswith("lm."):
                new = [path for path in files_of(name) if path not in found]
                found.update(new)
                waiting += new
    return {path.relative_to(PROJECT).as_posix() for path in found}


def files_of(name: str) -> list[Path]:
    """The files with code that Python runs when it imports the module `name`: its own and those of its packages."""
    path = PROJECT / (name.replace(".", "/") + ".py")
    files = [path] if path.exists() and path.name != "config.py" else []
    packages = [path.with_suffix(""), *path.parents]
    return files + [
        init for package in packages if (init := package / "__init__.py").exists() and not is_docstring(init)
    ]


def is_docstring(path: Path) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def imported_names(script: Path) -> list[str]:
    """The names of modules that `script` may import; `from a import b` may mean the module a or a.b."""
    names = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{script}: a relative import"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def script_of(stage: tuple[str, str]) -> str:
    """The script that `python -m stages.NAME` runs."""
    module = next(word for word in shlex.split(STAGES[stage]["cmd"]) if word.startswith("stages."))
    return module.replace(".", "/") + ".py"


def dependencies(stage: tuple[str, str]) -> list[str]:
    """The dependencies of a stage, those on code relative to the project's folder."""
    return [dep.removeprefix("../../") for dep in STAGES[stage]["deps"]]


def code_dependencies(stage: tuple[str, str]) -> list[str]:
    return [dep for dep in dependencies(stage) if dep.startswith("lm/")]


def covers(dependency: str, path: str) -> bool:
    """Whether a change of the file at `path` changes the dependency, a file or a folder."""
    return path == dependency or path.startswith(f"{dependency}/")


@pytest.mark.parametrize("stage", STAGES, ids=":".join)
def test_dependencies_are_the_imports(stage):
    script = script_of(stage)
    assert script in dependencies(stage)
    modules = imported(PROJECT / script)
    for module in modules:
        covering = [dep for dep in code_dependencies(stage) if covers(dep, module)]
        assert len(covering) == 1, f"{stage} imports {module}, covered by the dependencies {covering}"
    for dep in code_dependencies(stage):
        assert (PROJECT / dep).exists()
        assert any(covers(dep, module) for module in modules), f"{stage} depends on {dep} but imports nothing of it"


@pytest.mark.parametrize(
    ("path", "affected"),
    [
        ("lm/tokenizer/training/bpe.py", {"train_bpe"}),
        ("lm/generation/sampling.py", {"sample", "evaluate"}),
        ("lm/evaluation/samples.py", {"evaluate"}),
        ("lm/evaluation/kinds.py", {"train", "evaluate", "ablate", "scale"}),
        ("lm/studies/ablation/table.py", {"ablation_table"}),
        ("lm/training/loop.py", {"train", "ablate", "scale"}),
    ],
)
def test_an_edit_reruns_only_the_stages_that_use_the_code(path, affected):
    assert (PROJECT / path).exists()
    assert {
        name for _, name in PIPELINE if any(covers(dep, path) for dep in code_dependencies(("dvc.yaml", name)))
    } == (affected)


def test_the_packages_of_rooms_import_nothing():
    for path in (PROJECT / "lm/__init__.py", *PROJECT.glob("lm/*/__init__.py")):
        assert is_docstring(path), path


def test_every_script_is_a_stage():
    scripts = {script_of(stage) for stage in STAGES}
    assert scripts == {path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("stages/*.py")}


def test_every_module_imports_from_rooms_above_it():
    for path in PROJECT.glob("lm/**/*.py"):
        relative = path.relative_to(PROJECT)
        room = relative.parts[1].removesuffix(".py")
        if room in ("__init__", "__main__", "config"):
            continue
        for name in imported_names(path):
            parts = name.split(".")
            if parts[0] == "lm" and len(parts) > 1 and parts[1] != "config":
                assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{relative} imports {name}"


def test_studies_of_variants_have_the_same_pipeline():
    """So that `cp -r` starts a new study, and a correction reaches all of them."""
    texts = {file.read_text(encoding="utf-8") for file in PROJECT.glob("studies/*/dvc.yaml") if "ablation" in str(file)}
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["download", "train_bpe", "encode_memmap"])
def test_a_study_prepares_its_text_as_the_pipeline_does(name):
    for file, stage in STAGES:
        if stage == name and file != "dvc.yaml":
            assert STAGES[file, stage]["cmd"] == "PYTHONPATH=../.. " + STAGES["dvc.yaml", stage]["cmd"]
            assert dependencies((file, stage)) == STAGES["dvc.yaml", stage]["deps"]
