"""What a training run prints: lines above the progress bar, which is only drawn on a terminal."""

import sys

from tqdm import tqdm


def write_line(line: str) -> None:
    """Print `line` without breaking the progress bar, and flush it, so that a log file shows it at once."""
    tqdm.write(line)
    sys.stdout.flush()
