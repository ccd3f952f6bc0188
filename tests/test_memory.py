import math
from collections import namedtuple

import pytest
import torch

import lm.memory
from lm.memory import available_memory, cgroup_available

CPU = torch.device("cpu")


def test_the_processes_of_a_machine_share_the_memory_of_the_cpu(monkeypatch):
    monkeypatch.setattr(lm.memory.psutil, "virtual_memory", lambda: namedtuple("M", "available")(9000))
    monkeypatch.setattr(lm.memory, "cgroup_available", lambda: math.inf)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_memory(CPU, 3) == {"CPU": 3000}
    assert available_memory(torch.device("mps"), 1) == {"GPU": 5000, "CPU": 9000}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # eight processes on four machines
    assert available_memory(CPU, 8) == {"CPU": 4500}
    monkeypatch.setattr(lm.memory, "cgroup_available", lambda: 700)
    assert available_memory(CPU, 8) == {"CPU": 350}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Write control groups: the lines of /proc/self/cgroup, and files below /sys/fs/cgroup."""

    def groups(own: str, files: dict[str, str]) -> None:
        monkeypatch.setattr(lm.memory, "_CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(lm.memory, "_OWN_CGROUPS", tmp_path / "own")
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return groups


STAT = "anon 10\nactive_file 30\ninactive_file 4\n"


def test_the_limit_of_a_container(groups):
    groups("0::/\n", {"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": STAT})
    assert cgroup_available() == 1000 - 400 + 34  # 34 are page cache


def test_the_nearest_limit_of_nested_groups_counts(groups):
    files = {"memory.stat": STAT, "memory.current": "400\n"}
    nested = {f"{group}/{name}": text for group in ("job", "job/step") for name, text in files.items()}
    groups("0::/job/step\n", {**nested, "job/memory.max": "500\n", "job/step/memory.max": "max\n"})
    assert cgroup_available() == 134
    groups("0::/job/step\n", {"job/step/memory.max": "450\n"})
    assert cgroup_available() == 84
    groups("0::/job/step\n", {"job/step/memory.max": "100\n"})
    assert cgroup_available() == 0


def test_the_limit_of_version_1(groups):
    stat = "active_file 1\ninactive_file 1\ntotal_active_file 30\ntotal_inactive_file 4\n"
    memory = {"limit_in_bytes": "1000\n", "usage_in_bytes": "400\n", "stat": stat}
    # A container that sees the host's path; its own group is the root.
    groups("5:cpu:/\n4:memory:/docker/abc\n0::/\n", {f"memory/memory.{name}": text for name, text in memory.items()})
    assert cgroup_available() == 634


def test_no_limit(groups, tmp_path):
    groups("0::/\n", {"memory.max": "max\n", "memory.current": "400\n", "memory.stat": STAT})
    assert cgroup_available() == math.inf
    (tmp_path / "own").unlink()
    assert cgroup_available() == math.inf
