"""The memory that a process may still take, on the CPU and on its device."""

import math
import os
from pathlib import Path

import psutil
import torch

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory(device: torch.device, num_processes: int) -> dict[str, int]:
    """Bytes that one process may still take, by place: all that its GPU has free, a share of the CPU's."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))  # torchrun's may be on several machines
    cpu = {"CPU": int(min(psutil.virtual_memory().available, cgroup_available())) // local}
    if device.type == "cuda":
        return {"GPU": torch.cuda.mem_get_info(device)[0]} | cpu
    return {"GPU": torch.mps.recommended_max_memory()} | cpu if device.type == "mps" else cpu


def cgroup_available() -> float:
    """Bytes up to the nearest limit of a container, a batch job or a service (Linux); infinite without one.

    The limit of a group holds for all groups below it. The path that a container reads may be the host's; the files of
    its own group then lie at the top.
    """
    available = [math.inf]
    for line in _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):  # version 1
            root, limit, usage = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        for group in (root / path.lstrip("/") / "x").parents:
            try:
                free = int((group / limit).read_text()) - int((group / usage).read_text())
                facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # above the root, or not there, or "max"
                continue
            # Pages of files count as used, but are given up when anything else needs the memory.
            pages = (facts.get(f"total_{name}", facts.get(name, 0)) for name in ("active_file", "inactive_file"))
            available.append(max(0, free + sum(map(int, pages))))
    return min(available)
