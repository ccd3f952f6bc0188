"""The type of command-line arguments that name a file or a folder."""

import argparse
from pathlib import Path


def path(text: str) -> Path:
    """Convert an argument to a path; an empty one, such as an unset shell variable, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)
