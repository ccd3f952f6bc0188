"""The peak memory of this process: resident memory on the CPU, memory allocated by PyTorch on a GPU.

It imports torch only for a GPU, because the processes that measure tokenizers do not import it.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def reset_peak(device: "torch.device") -> int:
    """Restart the measurement of the peak and return the bytes to subtract from it: on a GPU, 0."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return 0
    return reset_resident_peak()


def peak(device: "torch.device") -> int:
    """Return the most bytes held since `reset_peak`."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resident_peak()


def reset_resident_peak() -> int:
    """Restart the measurement of the resident peak where the system supports it; return the bytes resident now.

    Only Linux supports it. Elsewhere the peak is that of the whole process, so a call that stays below an earlier peak
    counts as 0 bytes.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """Return the largest resident memory of this process in bytes, since the last reset."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource  # not available on Windows

        # In kB, except on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
