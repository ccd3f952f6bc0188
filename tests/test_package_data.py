"""Two lists that must agree: the data files in lm/, and those that pyproject.toml puts into the package."""

import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def test_every_data_file_is_part_of_the_package() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packaged = {path for pattern in settings["package-data"]["lm"] for path in (PROJECT / "lm").glob(pattern)}
    files = {path for path in (PROJECT / "lm").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    pictures = {path for path in files if path.suffix == ".png"}  # shown in docs/
    assert {path for path in files - pictures if path.suffix != ".py"} == packaged
