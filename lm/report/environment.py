"""The section on the machine, the software, the parameters and the times, for a page that is sent to others."""

import platform
from datetime import UTC, datetime

import torch

from lm.device import pick_device
from lm.errors import UserError
from lm.planning.devices import peak_flops
from lm.report.blocks import Block, Facts, Missing, Section, Table
from lm.report.commit import read_commit
from lm.report.machine import cores, memory, operating_system, processor, product_speed, version
from lm.report.numbers import count, size
from lm.report.parameters import closest_preset, differing, flatten, shown
from lm.report.run import Run
from lm.schema import read_json
from lm.studies.cost import cost
from lm.training.config import RunConfig
from lm.training.console import duration, si
from lm.yaml12 import read_yaml

_STUDIES = ("ablate", "scale")  # sections of the parameters that have sections of the report of their own
_PACKAGES = {"PyTorch": "torch", "NumPy": "numpy", "DVC": "dvc", "lm": "lm"}

# The files with times, the names of their values, and what these are.
_TIMES = {
    "train_bpe": ("train_bpe.json", "seconds", "bytes_per_second"),
    "encode_memmap, train": ("encode_memmap.json", "train_seconds", "train_bytes_per_second"),
    "encode_memmap, val": ("encode_memmap.json", "val_seconds", "val_bytes_per_second"),
    "train": ("train.json", "seconds", "tokens_per_second"),
}


def _finding(run: Run) -> str:
    commit = read_commit(run.folder)
    of_commit = f" from commit {commit}" if commit else ""
    return (
        f"This report was made on {_today()}{of_commit}, with Python {platform.python_version()} and PyTorch "
        f"{version('torch')}, on {_device(run)}."
    )


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _device(run: Run) -> str:
    """What the training runs on."""
    device = pick_device(run.params.runtime.device)
    if device.type == "cuda":
        number = run.params.runtime.num_processes
        return (f"{number} × " if number > 1 else "") + torch.cuda.get_device_name(device)
    name = "the GPU of " if device.type == "mps" else ""
    return f"{name}{processor()} with {_cores()}"


def _cores() -> str:
    number = cores()
    return f"{number} core{'s' * (number > 1)}"


def _machine(run: Run) -> list[Block]:
    rows = [("processor", processor()), ("logical cores", str(cores()))]
    if torch.cuda.is_available():
        rows.append(("GPU", torch.cuda.get_device_name()))
        rows.append(("number of GPUs", str(torch.cuda.device_count())))
        rows.append(("memory of a GPU", f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.3g} GB"))
    rows += [("memory", memory()), ("operating system", operating_system())]
    return [Facts(title="Machine", rows=rows)]


def _software(run: Run) -> list[Block]:
    rows = [("Python", platform.python_version())]
    rows += [(title, version(name)) for title, name in _PACKAGES.items()]
    if torch.version.cuda:
        rows.append(("CUDA", torch.version.cuda))
    commit = read_commit(run.folder)
    if commit is None:
        rows.append(("commit", "none: the folder is not under version control, or git is missing"))
    else:
        changes = f"with changes in {', '.join(commit.changed)}" if commit.changed else "clean"
        rows += [("commit", commit.hash), ("state", changes)]
    return [Facts(title="Software", rows=rows, command=f"pip show {' '.join(_PACKAGES.values())}; git status")]


def _parameters(run: Run) -> list[Block]:
    parameters = flatten(read_yaml(run.folder / "params.yaml"))
    name, preset = closest_preset(parameters)
    rows = [(key, shown(key, preset[key]), shown(key, parameters.get(key))) for key in differing(parameters, preset)]
    title = f"Parameters that differ from the preset {name}"
    blocks: list[Block] = [
        Table(title=title, header=("parameter", name, "this run"), rows=rows, numeric=False)
        if rows
        else Missing(title=title, message=f"None: all values that a preset sets are those of {name}.")
    ]
    others: dict[str, list[str]] = {}
    for key, value in parameters.items():
        section, _, parameter = key.partition(".")
        if key not in preset and section not in _STUDIES:
            others.setdefault(section, []).append(f"{parameter}: {shown(key, value)}")
    table = [(section, "; ".join(values)) for section, values in others.items()]
    blocks.append(
        Table(title="Parameters that no preset sets", header=("section", "values"), rows=table, numeric=False)
    )
    return blocks


def _times(run: Run) -> list[Block]:
    folder = run.folder / "data" / ".timing"
    rows, note = [], ""
    for stage, (file, seconds, rate) in _TIMES.items():
        if not (folder / file).is_file():
            continue
        values = read_json(folder / file, dict[str, float], f"measure them with: dvc repro --force {stage}")
        is_text = rate.endswith("bytes_per_second")
        speed = f"{size(values[rate])}/s" if is_text else f"{count(values[rate])} tokens/s"
        rows.append((stage, _duration(values[seconds]), speed))
        if stage == "train":
            note = _share_of_peak(run, values[rate])
    if not rows:
        raise UserError("data/.timing: no times; measure them with: dvc repro --force")
    return [
        Table(
            title="Times and rates",
            header=("stage", "time", "rate"),
            rows=rows,
            note=f"{note} A stage that was resumed counts from there on.".strip(),
            command="dvc repro --force",
        )
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _share_of_peak(run: Run, tokens_per_second: float) -> str:
    """The speed of the training in FLOP/s, and its share of what the device can do."""
    params = run.params
    config = RunConfig(model=params.model, optim=params.optim, train=params.train)
    flops = cost(config, run.tokenizer.vocab_size)["flops"] / config.num_tokens(params.train.max_steps)
    speed = flops * tokens_per_second
    text = f"The training computes {si(flops, 'FLOP')} per token, {si(speed, 'FLOP/s')}"
    device, precision = pick_device(params.runtime.device), params.train.precision
    if device.type == "cpu":
        peak = product_speed(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        return (
            f"{text}: {speed / peak:.0%} of the {si(peak, 'FLOP/s')} that a large matrix product in {precision} "
            "reached on this machine when the report was made."
        )
    if one := peak_flops(device, precision):
        peak = one * params.runtime.num_processes
        return f"{text}: {speed / peak:.0%} of the peak in {precision}, {si(peak, 'FLOP/s')}."
    return f"{text}. The peak speed of this device is not known."


ENVIRONMENT = Section("environment", "Environment", _finding, [_machine, _software, _times, _parameters])
