"""The memory that is available to a process, on the CPU and on its GPU."""

import math
import os
from pathlib import Path

import psutil
import torch

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory(device: torch.device, num_processes: int) -> dict[str, int]:
    """Bytes available to each of `num_processes` processes, by place: "CPU" is shared by them, "GPU" is not."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))  # torchrun may use several machines
    cpu = {"CPU": int(min(psutil.virtual_memory().available, cgroup_available())) // local}
    if device.type == "cuda":
        return {"GPU": torch.cuda.mem_get_info(device)[0]} | cpu
    return {"GPU": torch.mps.recommended_max_memory()} | cpu if device.type == "mps" else cpu


def cgroup_available() -> float:
    """Bytes left until the memory limit of a container, batch job or service on Linux; infinite without a limit.

    The limit of a control group also applies to the groups below it. In a container, /proc/self/cgroup may contain the
    host's path; the files of the container's own group are then at the top of /sys/fs/cgroup.
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
            except (OSError, ValueError):  # above the root, a missing file, or the limit "max"
                continue
            # The page cache counts as used, but the kernel frees it when the memory is needed.
            pages = (facts.get(f"total_{name}", facts.get(name, 0)) for name in ("active_file", "inactive_file"))
            available.append(max(0, free + sum(map(int, pages))))
    return min(available)
