"""Which modules a script imports, and a hash of their code."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def code_hash(script: Path) -> str:
    """Hash of a script and of all the project's modules that it imports, to tell whether its results may differ."""
    digest = hashlib.sha256()
    for path in sorted({script, *imported_modules(script)}):
        digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def imported_modules(script: Path) -> frozenset[Path]:
    """The files of the project's modules that a script imports, directly or not, inside functions too.

    The config.py modules are left out, because parameters are compared by value, and so are the __init__.py files that
    only hold a docstring. What lm/training imports of lm/planning is left out too: training prints predictions, and
    stops before any work if they exceed the memory or the disk, but its results do not depend on them.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        module = waiting.pop()
        for name in imported_names(module):
            if name.startswith("lm.") and not is_only_printed(module, name):
                new = [path for path in _files_of(name) if path not in found]
                found.update(new)
                waiting += new
    return frozenset(found)


def imported_names(script: Path) -> list[str]:
    """The names of modules that a script may import; `from a import b` may mean the module a or a.b."""
    names = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:  # there are no relative imports
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def is_only_printed(module: Path, name: str) -> bool:
    """Whether the file `module` imports the module `name` only for predictions, on which its results do not depend."""
    return module.parent == PROJECT / "lm/training" and name.startswith("lm.planning")


def has_only_a_docstring(path: Path) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def _files_of(name: str) -> list[Path]:
    """The files with code that Python runs when it imports the module `name`: its own and those of its packages."""
    path = PROJECT / (name.replace(".", "/") + ".py")
    files = [path] if path.exists() and path.name != "config.py" else []
    packages = [path.with_suffix(""), *path.parents]
    return files + [
        init for package in packages if (init := package / "__init__.py").exists() and not has_only_a_docstring(init)
    ]
