import pytest
import torch

from lm.device import check_precision
from lm.errors import UserError
from lm.planning.devices import DEVICES, known_device, peak_flops

# The names that CUDA reports.
NAMES = {
    "Tesla T4": "t4",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA L40S": "l40s",
    "NVIDIA A100-SXM4-40GB": "a100",
    "A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": "h200",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_peak_of_a_gpu_is_found_by_its_name(monkeypatch, name, precision):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision) == getattr(DEVICES[NAMES[name]], precision)


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000", "NVIDIA T400", "NVIDIA GeForce RTX 4090 Laptop GPU", "new"])
def test_a_similar_name_is_another_gpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "float32") is None


def test_every_gpu_has_a_name():
    assert {name for name, device in DEVICES.items() if device.kind == "cuda"} == set(NAMES.values())
    assert peak_flops(torch.device("cpu"), "float32") is None


def test_a_device_without_bfloat16_is_refused_as_in_training(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UserError) as in_training:
        check_precision(torch.device("cuda"), "bfloat16")
    with pytest.raises(UserError) as planned:
        DEVICES["t4"].peak("bfloat16")
    assert str(planned.value) == str(in_training.value)
    assert DEVICES["t4"].peak("float32") == 8.1e12


def test_the_peak_of_two_cores():
    assert DEVICES["cpu-2"].peak("float32") == 2 * 2 * 8 * 2 * 3e9  # cores, units, numbers, multiply and add, cycles


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(UserError) as error:
        known_device("h\n100")
    assert str(error.value) == (
        "--device: expected one of cpu-2, cpu-8, t4, rtx-4090, l40s, a100, h100-pcie, h100-nvl, h100, h200, "
        r"got 'h\n100'"
    )


@pytest.mark.parametrize("name", ["cpu-2", "cpu-8"])
def test_without_fast_bfloat16_a_cpu_multiplies_in_float32(name):
    assert DEVICES[name].peak("bfloat16") == DEVICES[name].peak("float32")
