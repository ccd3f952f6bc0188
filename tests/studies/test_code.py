import shutil
from pathlib import Path

import pytest

from lm.studies import code
from lm.studies.code import code_hash, imported_modules


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a script that imports lm.a, which imports lm.room.b in a function; lm.c is not imported.

    The script trains, and training prints what lm.planning predicts.
    """
    monkeypatch.setattr(code, "PROJECT", tmp_path)
    files = {
        "stages/cell.py": "import os\nfrom lm.a import f\nfrom lm.config import Params\nfrom lm.training import loop\n",
        "lm/__init__.py": '"""Docstring."""\n',
        "lm/a.py": "def f():\n    from lm.room import b\n",
        "lm/room/__init__.py": "import lm.d\n",
        "lm/room/b.py": "import lm.a\n",
        "lm/c.py": "",
        "lm/d.py": "",
        "lm/config.py": "import lm.c\n",
        "lm/training/loop.py": "from lm.planning.plan import plan\n",
        "lm/planning/plan.py": "import lm.c\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_except_through_config_modules(project):
    modules = imported_modules(project / "stages/cell.py")
    names = sorted(path.relative_to(project).as_posix() for path in modules)
    assert names == ["lm/a.py", "lm/d.py", "lm/room/__init__.py", "lm/room/b.py", "lm/training/loop.py"]


def test_predictions_that_another_module_uses_are_followed(project):
    (project / "lm/a.py").write_text("from lm.planning.plan import plan\n")
    modules = imported_modules.__wrapped__(project / "stages/cell.py")
    assert {project / "lm/planning/plan.py", project / "lm/c.py"} < modules


def test_the_hash_changes_with_the_script_and_with_what_it_imports_only(project):
    script = project / "stages/cell.py"
    before = code_hash(script)
    for name in ("lm/c.py", "lm/config.py", "lm/__init__.py", "lm/planning/plan.py"):
        (project / name).write_text('"""Another docstring."""\n')
        assert code_hash(script) == before, name
    for name in ("stages/cell.py", "lm/room/b.py", "lm/room/__init__.py"):
        text = (project / name).read_text()
        (project / name).write_text(text + "# edited\n")
        assert code_hash(script) != before, name
        (project / name).write_text(text)
    assert code_hash(script) == before


def test_the_hash_does_not_depend_on_the_place_of_the_project(project, tmp_path_factory, monkeypatch):
    before = code_hash(project / "stages/cell.py")
    other = tmp_path_factory.mktemp("other") / "project"
    shutil.copytree(project, other)
    monkeypatch.setattr(code, "PROJECT", other)
    assert code_hash(other / "stages/cell.py") == before
