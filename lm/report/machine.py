"""The machine and the software of a report, without the names of its user and its host."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

import psutil
import torch

from lm.report.numbers import size

_SECONDS = 0.5  # to measure the speed of a matrix product
_SHORTEST = 0.02  # seconds of a product; a shorter one says more about its overhead


def processor() -> str:
    """The name of the processor, or its architecture where the system does not know a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """The number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> str:
    return size(psutil.virtual_memory().total)


def operating_system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux
        return platform.platform(terse=True)


def version(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def product_speed(dtype: torch.dtype) -> float:
    """The highest speed of a large matrix product on the CPU in FLOP/s, measured in about half a second.

    A training step cannot be faster. The product of two n x n matrices takes 2 n³ FLOPs; n grows until it takes a
    fiftieth of a second.
    """
    n, best, spent = 256, 0.0, 0.0
    matrix = torch.ones(n, n, dtype=dtype)
    while spent < _SECONDS:
        started = time.perf_counter()
        torch.matmul(matrix, matrix)
        seconds = time.perf_counter() - started
        best, spent = max(best, 2 * n**3 / seconds), spent + seconds
        if seconds < _SHORTEST:
            n *= 2
            matrix = torch.ones(n, n, dtype=dtype)
    return best
