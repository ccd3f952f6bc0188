"""The FLOPs, memory, disk space and time that a run will need, and the settings to change if it does not fit.

FLOPs, memory and disk space are computed from the configuration (`lm.model.cost`, `lm.planning.memory_estimate`) and
compared with what this machine or a known device has. On this machine the time is measured: `measure_step_seconds`
takes a few training steps. For a known device, see `lm.planning.planned_time`.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from lm.device import keep_freed_memory, why_not_compile
from lm.errors import UserError
from lm.memory import available_memory
from lm.model.cost import parameters, training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.planning.devices import KnownDevice
from lm.planning.memory_estimate import loss_slack_bytes, process_bytes, training_bytes
from lm.training import distributed
from lm.training.config import Parallelism, RunConfig, RuntimeConfig, TrainConfig
from lm.training.console import si
from lm.training.optimizer import make_optimizer
from lm.training.train_step import TrainStep


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs; `str(plan)` is a table for the console.

    Memory is in bytes, of one process at its peak: `memory` by kind, `needed_memory` and `available_memory` by place
    ("CPU" or "GPU"). `disk` is in bytes by kind, for all processes together; `free_disk` is None if it is unknown.
    `share` is a process's number of sequences per batch. `largest_micro_batch_size` is the largest that fits if all
    other settings stay as they are, or 0 if none does. `nearest` holds the most similar settings that fit, or None if
    no settings fit.
    """

    runtime: RuntimeConfig
    num_processes: int
    parameters: dict[str, int]
    flops_per_token: int
    tokens: int
    flops: int  # of all training steps, without evaluations
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
    free_disk: int | None

    def check(self) -> None:
        """Raise UserError if memory or disk space does not suffice; the message names the nearest settings that fit."""
        for place, needed in self.needed_memory.items():
            available = self.available_memory[place]
            if needed > available:
                raise UserError(
                    f"runtime.micro_batch_size: with {self.micro_batch_size}, a process needs {si(needed, 'B')} of "
                    f"{place} memory, but {si(available, 'B')} are available; {self._advice()}"
                )
        needed = sum(self.disk.values())
        if self.free_disk is not None and needed > self.free_disk:
            keep = self.runtime.keep_checkpoints - math.ceil((needed - self.free_disk) / self.checkpoint_bytes)
            raise UserError(
                f"{self.checkpoints}: checkpoints and model need {si(needed, 'B')}, but "
                f"{si(self.free_disk, 'B')} are free; free some space"
                + (f", or set runtime.keep_checkpoints: {keep}" if keep > 0 else "")
            )

    def _advice(self) -> str:
        if self.nearest is None:
            return "the model itself does not fit: lower model.num_layers or model.d_model"
        before = vars(self.runtime)
        changes = {name: value for name, value in vars(self.nearest).items() if value != before[name]}
        return "set " + ", ".join(f"runtime.{name}: {str(value).lower()}" for name, value in changes.items())

    def __str__(self) -> str:
        memory = "memory per process" if self.num_processes > 1 else "memory"
        available = {place: si(size, "B") for place, size in self.available_memory.items()}
        free = "" if self.free_disk is None else f", of {si(self.free_disk, 'B')} free"
        rows = [
            *(("parameters", name, f"{count:,}") for name, count in self.parameters.items() if count),
            ("parameters", "total", f"{sum(self.parameters.values()):,}"),
            ("compute", "per token", si(self.flops_per_token, "FLOP")),
            ("compute", f"{self.tokens:,} tokens", si(self.flops, "FLOP")),
            *((memory, name, si(size, "B")) for name, size in self.memory.items() if size),
            *((memory, f"{p} total, of {available[p]} available", si(n, "B")) for p, n in self.needed_memory.items()),
            ("micro batch", "sequences", f"{self.micro_batch_size:,}"),
            ("micro batch", f"largest that fits, of {self.share:,}", f"{self.largest_micro_batch_size:,}"),
            *(("disk", name, si(size, "B")) for name, size in self.disk.items()),
            ("disk", f"total{free}", si(sum(self.disk.values()), "B")),
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
    device: torch.device | KnownDevice,
    checkpoints: Path,
    num_processes: int,
) -> Plan:
    """Estimate what a run needs on this machine, or on one with known devices, before anything is allocated.

    `checkpoints` is the run's folder of checkpoints, which need not exist. Checkpoints that are already there count as
    free space, because the run replaces them. Each process has a known device for itself; of its machine, nothing but
    the device's memory is known.

    Raises:
        UserError: `train.batch_size` is not a multiple of `num_processes`.
    """
    model, optim, train = run.model, run.optim, run.train
    share, size = _sizes(train, runtime, num_processes)
    if isinstance(device, KnownDevice):
        kind: str = device.kind
        available, free_disk = device.available_memory, None
    else:
        kind, available, free_disk = device.type, available_memory(device, num_processes), _free_disk(checkpoints)

    def memory(runtime: RuntimeConfig) -> dict[str, int]:
        return process_bytes(run, vocab_size, runtime, kind, num_processes)

    def needed(runtime: RuntimeConfig) -> dict[str, int]:
        return {place: size for place, size in _by_place(memory(runtime), kind).items() if place in available}

    def excess(runtime: RuntimeConfig) -> int:
        """How many bytes are missing, in the place where most are."""
        return max(size - available[place] for place, size in needed(runtime).items())

    slack = loss_slack_bytes(vocab_size, kind)
    # The order of the attempts: smaller micro batches, then the same with checkpointed activations, then with fsdp.
    fsdp: list[Parallelism] = ["fsdp"] if num_processes > 1 else []
    candidates = (
        _largest_fit(
            replace(runtime, parallelism=parallelism, checkpoint_activations=checkpointed), share, excess, slack
        )
        for parallelism in dict.fromkeys([runtime.parallelism, *fsdp])
        for checkpointed in dict.fromkeys([runtime.checkpoint_activations, True])
    )
    nearest = next(filter(None, candidates), None)
    largest = 0
    if nearest is not None and replace(nearest, micro_batch_size=runtime.micro_batch_size) == runtime:
        largest = nearest.micro_batch_size
    whole = training_bytes(model, vocab_size, 1, train.precision, optimizer=optim.optimizer)
    checkpoint_bytes = whole["weights"] + whole["optimizer"]
    num_checkpoints = runtime.keep_checkpoints + 3  # the last and the best evaluated one, and the one being written
    tokens = run.num_tokens(train.max_steps)
    return Plan(
        runtime=runtime,
        num_processes=num_processes,
        parameters=parameters(model, vocab_size),
        flops_per_token=training_flops_per_token(model, vocab_size),
        tokens=tokens,
        flops=tokens * training_flops_per_token(model, vocab_size),
        share=share,
        micro_batch_size=size,
        largest_micro_batch_size=largest,
        memory=memory(runtime),
        needed_memory=needed(runtime),
        available_memory=available,
        nearest=nearest,
        checkpoints=checkpoints,
        checkpoint_bytes=checkpoint_bytes,
        disk={f"{num_checkpoints} checkpoints": num_checkpoints * checkpoint_bytes, "model": whole["weights"]},
        free_disk=free_disk,
    )


def _largest_fit(
    runtime: RuntimeConfig, share: int, excess: Callable[[RuntimeConfig], int], slack: int
) -> RuntimeConfig | None:
    """Return `runtime` with the largest micro batch of at most `share` sequences that fits, or None if none does.

    A larger micro batch needs more memory, with two exceptions: it may need up to `slack` bytes less, and the whole
    share, as the only micro batch, needs no memory for the gradients of earlier ones.
    """

    def missing(size: int) -> int:
        return excess(replace(runtime, micro_batch_size=size))

    fitting, too_large = 0, share
    if missing(share) <= 0:
        fitting = share
    while too_large - fitting > 1:
        size = (fitting + too_large) // 2
        if missing(size) > slack:  # then no larger one fits
            too_large = size
        else:
            fitting = size
    while fitting and missing(fitting) > 0:
        fitting -= 1
    return replace(runtime, micro_batch_size=fitting) if fitting else None


def _sizes(train: TrainConfig, runtime: RuntimeConfig, num_processes: int) -> tuple[int, int]:
    """Each process's share of the batch, and its micro batch size, both in sequences."""
    share, remainder = divmod(train.batch_size, num_processes)
    if remainder:
        nearest = ", ".join(str(n * num_processes) for n in (share, share + 1) if n)
        raise UserError(
            f"train.batch_size: expected a multiple of runtime.num_processes = {num_processes}, "
            f"got {train.batch_size}; the nearest are {nearest}"
        )
    return share, min(runtime.micro_batch_size or share, share)


def _by_place(memory: dict[str, int], device: str) -> dict[str, int]:
    """Total memory by place. On a GPU, only the copy for a checkpoint is in the CPU's memory."""
    if device == "cpu":
        return {"CPU": sum(memory.values())}
    return {"GPU": sum(memory.values()) - memory["checkpoint"], "CPU": memory["checkpoint"]}


def _free_disk(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist, plus the bytes of the files in it."""
    in_folder = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process may be deleting it
            in_folder += path.stat().st_size if path.is_file() else 0
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free + in_folder


def measure_step_seconds(run: RunConfig, vocab_size: int, runtime: RuntimeConfig, device: torch.device) -> float:
    """Measure the seconds that a training step takes, with a temporary model and random tokens.

    If a step has more than two micro batches, one step with one micro batch and one with two are timed, and every
    further micro batch is assumed to take the difference. All processes of a run call this together, each for its share
    of the batch. The state of the random number generator does not change.
    """
    keep_freed_memory()
    model, optim, train = run.model, run.optim, run.train
    share, size = _sizes(train, runtime, distributed.num_processes())
    compile = runtime.compile and why_not_compile(device) is None
    with torch.random.fork_rng(devices=[]):  # only the CPU's: weights are drawn on the CPU for every device
        lm = TransformerLM(model, vocab_size, runtime.attention_backend, runtime.checkpoint_activations).to(device)
        tokens = torch.randint(vocab_size, (min(share, 2 * size), model.context_length + 1))
    if runtime.parallelism == "fsdp" and distributed.num_processes() > 1:
        distributed.shard(lm, device)
    train_step = TrainStep(
        lm,
        make_optimizer(lm, optim),
        precision=train.precision,
        max_grad_norm=optim.max_grad_norm,
        document_separator=0 if train.document_mask else None,
        compile=compile,
    )
    seconds = _median_seconds(train_step, tokens, size)
    if share > 2 * size:
        first = _median_seconds(train_step, tokens[:size], size)
        seconds = first + (share / size - 1) * max(0, seconds - first)
    if compile:
        torch.compiler.reset()  # so that training in the same process compiles as if nothing had been measured
    return seconds


def _median_seconds(train_step: TrainStep, tokens: torch.Tensor, micro_batch_size: int) -> float:
    """Median time of three steps with `tokens`, (B, T + 1), after one step that warms up and may compile."""
    seconds = []
    disable = distributed.progress_bar_disabled()
    for _ in tqdm(range(4), "measuring a step", leave=False, unit="step", disable=disable):
        started = time.perf_counter()
        # The learning rate is so low that no loss becomes infinite.
        train_step(tokens[:, :-1], tokens[:, 1:], 1e-6, micro_batch_size)
        # On a GPU this includes the end of the previous step instead of the end of this one.
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
