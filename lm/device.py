"""What this machine can do: its device, precision, memory allocator and compiler."""

import ctypes
import sys
from typing import Literal

import torch

from lm.errors import UserError


def pick_device(name: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """Return the device `name`; `auto` is CUDA if available, otherwise MPS, otherwise the CPU.

    Raises:
        UserError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_available in available.items() if is_available))
    if not available[name]:
        raise UserError(f"runtime.device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)


def check_precision(device: torch.device, precision: str) -> None:
    """Raise UserError for bfloat16 on a GPU that would have to emulate it, which is far too slow."""
    if (
        precision == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(f"train.precision: {torch.cuda.get_device_name()} does not support bfloat16; use float32")


def keep_freed_memory() -> None:
    """Tell the C library to keep large blocks of memory when they are freed, because the next step needs them again.

    By default, glibc returns freed blocks of more than 32 MB to the kernel, which clears every page when they are
    allocated again; on two cores, that makes a step of a model with 0.8 million parameters take 1.2 times as long. Does
    nothing where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, unlimited = -1, -3, 2**31 - 1  # <malloc.h>
        mallopt(m_trim_threshold, unlimited)
        mallopt(m_mmap_threshold, unlimited)


def why_not_compile(device: torch.device) -> str | None:
    """Return why torch.compile does not work on this machine, or None if it works.

    Typical reasons are a missing C++ compiler, missing headers, a missing Triton, or an old GPU.
    """
    if device.type == "mps":
        return "compiled code for MPS is not reliable"
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # each backend raises its own kinds of errors
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None
