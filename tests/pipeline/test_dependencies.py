"""Two lists that must agree: what a stage imports, and the dependencies that dvc.yaml declares for it."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lm.studies.code import has_only_a_docstring, imported_modules, imported_names, is_only_printed

PROJECT = Path(__file__).resolve().parents[2]
STAGES = {
    (file.relative_to(PROJECT).as_posix(), name): stage
    for file in (PROJECT / "dvc.yaml", *sorted(PROJECT.glob("studies/*/dvc.yaml")))
    for name, stage in YAML(typ="safe").load(file)["stages"].items()
}
PIPELINE = [stage for stage in STAGES if stage[0] == "dvc.yaml"]

# From top to bottom. A room imports only from itself and from the rooms above it. `config` is apart from this order, as
# are the predictions of lm/planning that lm/training prints.
ROOMS = (
    "errors",
    "atomic",
    "schema",
    "yaml12",
    "device",
    "memory",
    "pictures",
    "shards",
    "scratch",
    "cluster",
    "progress",
    "corpus",
    "tokenizer",
    "tokens",
    "model",
    "generation",
    "evaluation",
    "training",
    "planning",
    "export",
    "studies",
    "presets",
    "report",
    "serving",
    "cli",
)


def imported(script: Path) -> set[str]:
    """The paths of the project's modules that a script imports."""
    return {path.relative_to(PROJECT).as_posix() for path in imported_modules(script)}


def code_of(stage: tuple[str, str]) -> set[str]:
    """The paths of the modules that must be covered by the dependencies of a stage.

    A stage that plans cells depends on their code, too, and a cell depends on it through its plan.
    """
    script = script_of(stage)
    if script == "stages/cell.py":
        assert any(dep.startswith("data/plan/") for dep in STAGES[stage]["deps"])
        return set()
    modules = imported(PROJECT / script)
    return modules | imported(PROJECT / "stages/train_cell.py") if "lm/studies/plan.py" in modules else modules


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
    modules = code_of(stage)
    if modules:
        assert script in dependencies(stage)
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
        ("lm/generation/sampling.py", {"sample", "evaluate", "report"}),
        ("lm/evaluation/samples.py", {"evaluate", "report"}),
        ("lm/evaluation/kinds.py", {"train", "evaluate", "plan", "report"}),
        ("lm/studies/ablation/table.py", {"ablation_table", "report"}),
        ("lm/training/loop.py", {"train", "plan", "report"}),
        ("lm/planning/devices.py", {"report"}),
        ("lm/report/data.py", {"report"}),
    ],
)
def test_an_edit_reruns_only_the_stages_that_use_the_code(path, affected):
    assert (PROJECT / path).exists()
    assert {
        name for _, name in PIPELINE if any(covers(dep, path) for dep in code_dependencies(("dvc.yaml", name)))
    } == (affected)


def test_the_packages_of_rooms_import_nothing():
    for path in (PROJECT / "lm/__init__.py", *PROJECT.glob("lm/*/__init__.py")):
        assert has_only_a_docstring(path), path


def test_every_script_is_a_stage():
    scripts = {script_of(stage) for stage in STAGES} | {"stages/train_cell.py"}  # which stages/cell.py runs
    modules = {path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("stages/*.py")}
    assert scripts == modules - {"stages/__init__.py"}


def test_every_module_imports_from_rooms_above_it():
    for path in PROJECT.glob("lm/**/*.py"):
        relative = path.relative_to(PROJECT)
        room = relative.parts[1].removesuffix(".py")
        if room in ("__init__", "__main__", "config"):
            continue
        for name in imported_names(path):
            parts = name.split(".")
            if parts[0] == "lm" and len(parts) > 1 and parts[1] != "config" and not is_only_printed(path, name):
                assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{relative} imports {name}"


def stages_of(file: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(file)["stages"]


def test_all_studies_have_the_same_pipeline_up_to_the_last_stage():
    """So that `cp -r` starts a new study, and a correction reaches all of them."""
    studies = [stages_of(file) for file in PROJECT.glob("studies/*/dvc.yaml")]
    for stages in studies:
        stages.popitem()
    assert len(studies) > 1 and all(stages == studies[0] for stages in studies)


@pytest.mark.parametrize("name", ["download", "train_bpe", "encode_memmap"])
def test_a_study_prepares_its_text_as_the_pipeline_does(name):
    for file in PROJECT.glob("studies/*/dvc.yaml"):
        stage = file.relative_to(PROJECT).as_posix(), name
        assert STAGES[stage]["cmd"] == "PYTHONPATH=../.. " + STAGES["dvc.yaml", name]["cmd"]
        assert dependencies(stage) == STAGES["dvc.yaml", name]["deps"]
