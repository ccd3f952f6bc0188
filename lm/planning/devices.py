"""Devices that a run can be planned for by name, with the figures of their vendors' data sheets."""

import re
from dataclasses import dataclass
from typing import Literal

import torch

from lm.errors import UserError, quote


@dataclass(frozen=True, kw_only=True)
class KnownDevice:
    """A GPU, or the cores of a machine without one.

    `float32` and `bfloat16` are the peak speeds of dense matrix products in FLOP/s, float32 without TF32; `bfloat16` is
    None if the device has no instructions for it. `memory` is in bytes, `bandwidth` in bytes per second, both with
    decimal prefixes as in data sheets. `pattern` is a regular expression that finds the GPU in the name that CUDA
    reports.
    """

    title: str
    kind: Literal["cpu", "cuda"]
    float32: float
    bfloat16: float | None
    memory: float
    bandwidth: float
    pattern: str = ""

    @property
    def available_memory(self) -> dict[str, int]:
        """Bytes that training can use, by place, as `lm.memory.available_memory` returns them: nine tenths of all.

        The rest is for the driver or the operating system, and is lost between blocks of memory.
        """
        return {"CPU" if self.kind == "cpu" else "GPU": int(0.9 * self.memory)}

    def peak(self, precision: str) -> float:
        """The peak speed in FLOP/s.

        Raises:
            UserError: the precision is bfloat16, and the device does not support it; on a GPU, training would raise the
                same error (`lm.device.check_precision`).
        """
        if precision != "bfloat16":
            return self.float32
        if self.bfloat16 is None:
            raise UserError(f"train.precision: {self.title} does not support bfloat16; use float32")
        return self.bfloat16


# A core with AVX2 has two units that each multiply and add eight float32 numbers per cycle: 32 FLOP per cycle (Intel 64
# and IA-32 Architectures Optimization Reference Manual; Software Optimization Guide for the AMD Zen 3). With AVX2 only,
# products of bfloat16 activations are computed in float32 (lm/model/fused/products.py).
_AVX2_CORE = 32 * 3.0e9  # FLOP/s at 3 GHz

# All speeds are dense. The data sheets of the H100 and the H200 list bfloat16 with sparsity, at twice the speed; the
# comments give that figure in brackets, in TFLOP/s.
DEVICES = {
    # Two cores of a server, which share its memory with the others: the bandwidth is a guess. Two channels of DDR4-3200
    # have 51.2 GB/s.
    "cpu-2": KnownDevice(
        title="CPU with 2 cores and AVX2",
        kind="cpu",
        float32=2 * _AVX2_CORE,
        bfloat16=2 * _AVX2_CORE,
        memory=8e9,
        bandwidth=20e9,
    ),
    "cpu-8": KnownDevice(
        title="CPU with 8 cores and AVX2",
        kind="cpu",
        float32=8 * _AVX2_CORE,
        bfloat16=8 * _AVX2_CORE,
        memory=16e9,
        bandwidth=51.2e9,
    ),
    # NVIDIA T4 Tensor Core GPU, data sheet; others give the theoretical bandwidth, 320 GB/s. Turing has no bfloat16.
    "t4": KnownDevice(
        title="Tesla T4", kind="cuda", float32=8.1e12, bfloat16=None, memory=16e9, bandwidth=300e9, pattern=r"\bT4$"
    ),
    # NVIDIA Ada GPU Architecture, white paper, appendix A, with bfloat16 accumulated in float32. A laptop's 4090 is
    # another GPU.
    "rtx-4090": KnownDevice(
        title="NVIDIA GeForce RTX 4090",
        kind="cuda",
        float32=82.6e12,
        bfloat16=165.2e12,
        memory=24e9,
        bandwidth=1008e9,
        pattern=r"\bRTX 4090$",
    ),
    # NVIDIA L40S, data sheet: it lists bfloat16 as 362.05 | 733 with sparsity.
    "l40s": KnownDevice(
        title="NVIDIA L40S",
        kind="cuda",
        float32=91.6e12,
        bfloat16=362e12,
        memory=48e9,
        bandwidth=864e9,
        pattern=r"\bL40S\b",
    ),
    # NVIDIA A100 Tensor Core GPU, data sheet, 80 GB SXM. The one with 40 GB has the same speeds, and 1,555 GB/s.
    "a100": KnownDevice(
        title="NVIDIA A100 80 GB",
        kind="cuda",
        float32=19.5e12,
        bfloat16=312e12,
        memory=80e9,
        bandwidth=2039e9,
        pattern=r"\bA100\b",
    ),
    # NVIDIA H100 Tensor Core GPU, data sheet: PCIe [1,513], NVL [1,671] and SXM [1,979]; the edition with NVL no
    # longer lists PCIe. CUDA does not report the name SXM, so its pattern is the last one.
    "h100-pcie": KnownDevice(
        title="NVIDIA H100 PCIe",
        kind="cuda",
        float32=51e12,
        bfloat16=756e12,
        memory=80e9,
        bandwidth=2000e9,
        pattern=r"\bH100 PCIe",
    ),
    "h100-nvl": KnownDevice(
        title="NVIDIA H100 NVL",
        kind="cuda",
        float32=60e12,
        bfloat16=835e12,
        memory=94e9,
        bandwidth=3900e9,
        pattern=r"\bH100 NVL",
    ),
    "h100": KnownDevice(
        title="NVIDIA H100 SXM",
        kind="cuda",
        float32=67e12,
        bfloat16=989e12,
        memory=80e9,
        bandwidth=3350e9,
        pattern=r"\bH100\b",
    ),
    # NVIDIA H200 Tensor Core GPU, data sheet, SXM [1,979].
    "h200": KnownDevice(
        title="NVIDIA H200 SXM",
        kind="cuda",
        float32=67e12,
        bfloat16=989e12,
        memory=141e9,
        bandwidth=4800e9,
        pattern=r"H200\b",  # also the GPU of a GH200
    ),
}


def known_device(name: str) -> KnownDevice:
    """Return the device `name`.

    Raises:
        UserError: there is no such device; the message lists those that there are.
    """
    if name not in DEVICES:
        raise UserError(f"--device: expected one of {', '.join(DEVICES)}, got {quote(name)}")
    return DEVICES[name]


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak speed in FLOP/s of the GPU `device`, or None if it is not one of `DEVICES`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known in DEVICES.values():
        if known.pattern and re.search(known.pattern, name):
            return known.bfloat16 if precision == "bfloat16" else known.float32
    return None
