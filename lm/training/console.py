"""What a training run prints: lines above the progress bar, which is only drawn on a terminal, and quantities."""

import sys

from tqdm import tqdm


def write_line(line: str) -> None:
    """Print `line` without breaking the progress bar, and flush it, so that a log file shows it at once."""
    tqdm.write(line)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Format a duration for people: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    parts = {"h": minutes // 60, "min": minutes % 60}
    if minutes >= 24 * 60:
        parts = {"days" if hours >= 48 else "day": hours // 24, "h": hours % 24}
    return " ".join(f"{count} {unit}" for unit, count in parts.items() if count)


def si(value: float, unit: str) -> str:
    """Format `value` with three digits and a decimal prefix: 1,234,567 B is 1.23 MB."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.0f} E{unit}"
