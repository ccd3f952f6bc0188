"""The machine that a run is on: device, precision, compilation, and its peak."""

import ctypes
import sys
from typing import Literal

import torch

from lm.errors import UserError

# Dense peak in FLOP/s, bfloat16 and float32 (TF32 off), from the makers' data sheets; the first name that fits counts.
PEAKS = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "RTX 4090": (165e12, 82.6e12),
}


def pick_device(name: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """The device asked for; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        UserError: the device asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"runtime.device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse bfloat16 on a GPU without it, before hours of emulation."""
    if (
        precision == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(f"train.precision: {torch.cuda.get_device_name()} has no bfloat16; use float32")


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed: the next step asks for the same ones again.

    glibc gives a freed block of over 32 MB back to the kernel, which then clears every page anew: on two cores, a step
    of the laptop preset takes 1.2 times as long. Other C libraries have no such function, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1  # <malloc.h>
        mallopt(m_trim_threshold, most)
        mallopt(m_mmap_threshold, most)


def why_not_compile(device: torch.device) -> str | None:
    """What keeps torch.compile from working here, or None: a compiler, its headers, Triton, the GPU's age."""
    if device.type == "mps":
        return "its code for MPS is not reliable"
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # every backend fails in ways of its own, and all of them mean the same here
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device can reach at most, or None where no data sheet is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, (bfloat16, float32) in PEAKS.items():
        if part in name:
            return bfloat16 if precision == "bfloat16" else float32
    return None
