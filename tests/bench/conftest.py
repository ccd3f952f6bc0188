import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bench(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The scripts of the folder bench/ by name, importable as when one of them is run."""
    monkeypatch.syspath_prepend(project / "bench")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == project / "bench":
            del sys.modules[name]
