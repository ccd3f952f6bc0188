"""The type of command-line arguments that name a file or a folder."""

import argparse
from pathlib import Path

from lm.errors import quote


def path(text: str) -> Path:
    """Convert an argument to a path.

    An empty one, such as an unset shell variable, would mean the current folder. Names of files and folders are written
    into exported files, as UTF-8.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    if text != text.encode(errors="ignore").decode():
        raise argparse.ArgumentTypeError(f"expected a path in UTF-8, got {quote(text)}")
    return Path(text)
