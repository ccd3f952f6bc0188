import platform
from pathlib import Path

import psutil
import pytest
import torch

from lm.report import machine


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A CPU: fast\nprocessor\t: 1\nmodel name\t: A CPU: fast\n", "A CPU: fast"),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", "aarch64"),
        (None, "arm"),
    ],
)
def test_the_name_of_the_processor(monkeypatch, cpuinfo, expected):
    def read_text(path):
        assert path == Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine.processor() == expected


def test_cores_memory_and_system(monkeypatch):
    assert machine.cores() >= 1
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 8_000_000_000}))
    assert machine.memory() == "8 GB"
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"PRETTY_NAME": "Linux 1"})
    assert machine.operating_system() == "Linux 1"

    def no_such_file():
        raise OSError

    monkeypatch.setattr(platform, "freedesktop_os_release", no_such_file)
    monkeypatch.setattr(platform, "platform", lambda terse: "macOS-14.5")
    assert machine.operating_system() == "macOS-14.5"


def test_versions():
    assert machine.version("torch") == torch.__version__
    assert machine.version("a-package-that-does-not-exist") == "not installed"


def test_the_speed_is_the_flops_over_the_seconds_of_the_fastest_product(monkeypatch):
    # A clock on which products of n = 256 take 0.01 s, and those of n = 512 take 0.16, 0.08 and 0.32 s.
    seconds = iter([0.01, 0.16, 0.08, 0.32])
    times = iter([time for duration in seconds for time in (0.0, duration)])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times))
    assert machine.product_speed(torch.float32) == pytest.approx(2 * 512**3 / 0.08)
