"""What a training will take, before it starts: FLOPs, memory, disk and time, and what to set where it does not fit.

All but the time follows from the configuration (`lm.model.cost`) and from what this machine has to give; for the
time, `measure_step_seconds` makes a few steps.
"""

import math
import shutil
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from lm.device import keep_freed_memory, why_not_compile
from lm.errors import UserError
from lm.model.config import ModelConfig
from lm.model.cost import parameters, training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.training import distributed
from lm.training.config import OptimConfig, RunConfig, RuntimeConfig, TrainConfig
from lm.training.memory import available_memory
from lm.training.memory_estimate import process_bytes, training_bytes
from lm.training.optimizer import make_optimizer
from lm.training.train_step import TrainStep


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training takes; `str` makes a table of it.

    Memory is in bytes of one process at its peak: `memory` by kind, the others by place, CPU or GPU; `disk` is by kind,
    for all processes. `largest_micro_batch_size` is what fits of a process's `share` of the batch with the other
    settings as they are; 0: nothing does. `nearest` are the settings that fit, None where there are none.
    """

    runtime: RuntimeConfig
    num_processes: int
    parameters: dict[str, int]
    flops_per_token: int
    tokens: int
    flops: int  # of all updates; evaluations come on top
    share: int
    micro_batch_size: int
    largest_micro_batch_size: int
    memory: dict[str, int]
    needed_memory: dict[str, int]
    available_memory: dict[str, int]
    nearest: RuntimeConfig | None
    checkpoints: Path
    checkpoint_bytes: int
    disk: dict[str, int]
    free_disk: int

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            UserError: memory or disk does not suffice; the message names the nearest settings with which it does.
        """
        for place, needed in self.needed_memory.items():
            available = self.available_memory[place]
            if needed > available:
                raise UserError(
                    f"runtime.micro_batch_size: with {self.micro_batch_size}, a process takes {_si(needed, 'B')} of "
                    f"{place} memory, and {_si(available, 'B')} are available; {self._advice()}"
                )
        needed = sum(self.disk.values())
        if needed > self.free_disk:
            keep = self.runtime.keep_checkpoints - math.ceil((needed - self.free_disk) / self.checkpoint_bytes)
            raise UserError(
                f"{self.checkpoints}: checkpoints and model take {_si(needed, 'B')}, and "
                f"{_si(self.free_disk, 'B')} are free; free some space"
                + (f", or set runtime.keep_checkpoints: {keep}" if keep > 0 else "")
            )

    def _advice(self) -> str:
        if self.nearest is None:
            return "the model itself does not fit: lower model.num_layers or model.d_model"
        before = vars(self.runtime)
        changes = {name: value for name, value in vars(self.nearest).items() if value != before[name]}
        return "set " + ", ".join(f"runtime.{name}: {str(value).lower()}" for name, value in changes.items())

    def __str__(self) -> str:
        memory = f"memory, each of {self.num_processes}" if self.num_processes > 1 else "memory"
        available = {place: _si(size, "B") for place, size in self.available_memory.items()}
        rows = [
            *(("parameters", name, f"{count:,}") for name, count in self.parameters.items() if count),
            ("parameters", "all", f"{sum(self.parameters.values()):,}"),
            ("compute", "a token", _si(self.flops_per_token, "FLOP")),
            ("compute", f"{self.tokens:,} tokens", _si(self.flops, "FLOP")),
            *((memory, name, _si(size, "B")) for name, size in self.memory.items() if size),
            *((memory, f"{p}, of {available[p]} available", _si(n, "B")) for p, n in self.needed_memory.items()),
            ("micro batch", "sequences", f"{self.micro_batch_size:,}"),
            ("micro batch", f"at most, of {self.share:,}", f"{self.largest_micro_batch_size:,}"),
            *(("disk", name, _si(size, "B")) for name, size in self.disk.items()),
            ("disk", f"all, of {_si(self.free_disk, 'B')} free", _si(sum(self.disk.values()), "B")),
        ]
        left, middle, right = (max(map(len, column)) for column in zip(*rows))
        return "\n".join(
            f"{'' if section == above else section:<{left}}  {name:<{middle}}  {value:>{right}}"
            for above, (section, name, value) in zip(["", *(row[0] for row in rows)], rows)
        )


def plan(
    run: RunConfig,
    vocab_size: int,
    runtime: RuntimeConfig,
    device: torch.device,
    checkpoints: Path,
    num_processes: int,
) -> Plan:
    """Account for a training on this machine before anything of it is in memory.

    `checkpoints` is the run's folder of checkpoints, which need not exist; those that lie there will be replaced, and
    count as free space.

    Raises:
        UserError: `num_processes` cannot share `train.batch_size` evenly.
    """
    model, optim, train = run.model, run.optim, run.train
    share, size = _sizes(train, runtime, num_processes)
    available = available_memory(device, num_processes)

    def memory(runtime: RuntimeConfig) -> dict[str, int]:
        return process_bytes(run, vocab_size, runtime, device.type, num_processes)

    def fits(runtime: RuntimeConfig) -> bool:
        return all(needed <= available[place] for place, needed in _by_place(memory(runtime), device.type).items())

    # In this order: smaller micro batches, then with activations checkpointed too, then all this with fsdp.
    candidates = (
        replace(runtime, parallelism=parallelism, checkpoint_activations=checkpointed, micro_batch_size=at_once)
        for parallelism in dict.fromkeys([runtime.parallelism, *(["fsdp"] if num_processes > 1 else [])])
        for checkpointed in dict.fromkeys([runtime.checkpoint_activations, True])
        for at_once in range(share, 0, -1)
    )
    nearest = next(filter(fits, candidates), None)
    suffices = nearest and replace(nearest, micro_batch_size=runtime.micro_batch_size) == runtime
    whole = training_bytes(model, vocab_size, 1, train.precision, optimizer=optim.optimizer)
    checkpoint_bytes = whole["weights"] + whole["optimizer"]
    num_checkpoints = runtime.keep_checkpoints + 3  # two that were evaluated, and the one that is being written
    tokens = train.max_steps * train.batch_size * model.context_length
    return Plan(
        runtime=runtime,
        num_processes=num_processes,
        parameters=parameters(model, vocab_size),
        flops_per_token=training_flops_per_token(model, vocab_size),
        tokens=tokens,
        flops=tokens * training_flops_per_token(model, vocab_size),
        share=share,
        micro_batch_size=size,
        largest_micro_batch_size=nearest.micro_batch_size if suffices else 0,
        memory=memory(runtime),
        needed_memory=_by_place(memory(runtime), device.type),
        available_memory=available,
        nearest=nearest,
        checkpoints=checkpoints,
        checkpoint_bytes=checkpoint_bytes,
        disk={f"{num_checkpoints} checkpoints": num_checkpoints * checkpoint_bytes, "model": whole["weights"]},
        free_disk=_free_disk(checkpoints),
    )


def _sizes(train: TrainConfig, runtime: RuntimeConfig, num_processes: int) -> tuple[int, int]:
    """Sequences of a batch for each process, as many for all, and how many of them are in its memory at once."""
    share, rest = divmod(train.batch_size, num_processes)
    if rest:
        nearest = ", ".join(str(n * num_processes) for n in (share, share + 1) if n)
        raise UserError(
            f"train.batch_size: expected a multiple of runtime.num_processes = {num_processes}, "
            f"got {train.batch_size}; the nearest: {nearest}"
        )
    return share, min(runtime.micro_batch_size or share, share)


def _by_place(memory: dict[str, int], device: str) -> dict[str, int]:
    """Sums of kinds of memory: a checkpoint is copied into the CPU's, everything else is the device's own."""
    if device == "cpu":
        return {"CPU": sum(memory.values())}
    return {"GPU": sum(memory.values()) - memory["checkpoint"], "CPU": memory["checkpoint"]}


def _free_disk(folder: Path) -> int:
    """Bytes free on the disk of `folder`, which need not exist, with those that lie in it."""
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free + held


def measure_step_seconds(run: RunConfig, vocab_size: int, runtime: RuntimeConfig, device: torch.device) -> float:
    """Seconds of one step of a whole batch, measured on random tokens and a model of their own.

    Of more than two micro batches, the time of one step with the first and one with the first two is measured; each of
    the others takes the difference. Several processes measure together, each with its share of the batch. The state of
    the random numbers is left as it was.
    """
    keep_freed_memory()
    model, optim, train = run.model, run.optim, run.train
    share, size = _sizes(train, runtime, distributed.num_processes())
    compile = runtime.compile and why_not_compile(device) is None
    with torch.random.fork_rng(devices=[]):  # on the CPU, where the weights are drawn whatever the device
        lm = TransformerLM(model, vocab_size, runtime.attention_backend, runtime.checkpoint_activations).to(device)
        tokens = torch.randint(vocab_size, (min(share, 2 * size), model.context_length + 1))
    if runtime.parallelism == "fsdp" and distributed.num_processes() > 1:
        distributed.shard(lm, device)
    update = TrainStep(
        lm,
        make_optimizer(lm, optim),
        precision=train.precision,
        max_grad_norm=optim.max_grad_norm,
        document_separator=0 if train.document_mask else None,
        micro_batch_size=size,
        compile=compile,
    )
    seconds = _median_seconds(update, tokens)
    if share > 2 * size:
        first = _median_seconds(update, tokens[:size])
        seconds = first + (share / size - 1) * max(0, seconds - first)
    if compile:
        torch.compiler.reset()  # the training compiles as if there had been no measure_step_seconds
    return seconds


def _median_seconds(update: TrainStep, tokens: torch.Tensor) -> float:
    """Of three steps with all `tokens`, (B, T + 1), after one that warms up and may compile."""
    seconds = []
    for _ in tqdm(range(4), "measuring a step", leave=False, unit="step", disable=not distributed.is_first()):
        started = time.perf_counter()
        update(tokens[:, :-1], tokens[:, 1:], learning_rate=1e-6)  # next to nothing, so that no loss becomes infinite
        seconds.append(time.perf_counter() - started)  # on a GPU with the end of the step before, instead of its own
    return statistics.median(seconds[1:])


def duration(seconds: float) -> str:
    """For people, to a minute or an hour: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    parts = {"h": minutes // 60, "min": minutes % 60}
    if minutes >= 24 * 60:
        parts = {"days" if hours >= 48 else "day": hours // 24, "h": hours % 24}
    return " ".join(f"{count} {unit}" for unit, count in parts.items() if count)


def _si(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: 1,234,567 B is 1.23 MB."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.0f} E{unit}"
