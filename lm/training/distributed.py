"""Training one model with several processes, on torch.distributed: starting, connecting and stopping them.

`launch` starts the processes on this machine; `torchrun` can start them on several machines. Every process runs the
same program and enters `process_group`, which connects it to the others. In a program that was started by neither,
there is one process, and the functions here do nothing.

Each process computes the gradients of its share of a batch. They are averaged by DistributedDataParallel (Li et al.
2020), where every process holds the whole model, or by FSDP2 (Zhao et al. 2023), where every process holds a shard of
the weights, gradients and optimizer state, and each block is gathered only while it is computed. Its modules take a
second to import, so they are only imported in a process group, because nothing is sharded elsewhere.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import ProcessException, start_processes
from tqdm import tqdm

from lm.errors import UserError
from lm.model.transformer import TransformerLM

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_RENDEZVOUS = "LM_RENDEZVOUS"  # the environment variable that tells processes of `launch` how to find each other
_INTERRUPTED = 128 + signal.SIGINT


def is_launched() -> bool:
    """Whether this process is one of several that `launch` or torchrun started."""
    return _RENDEZVOUS in os.environ or dist.is_torchelastic_launched()


def launch(main: Callable[[], None], num_processes: int) -> None:
    """Run `main`, which must be picklable, in `num_processes` processes on this machine, and wait for all of them.

    If one process fails, all stop and its error is raised. The processes find each other through a file and communicate
    over the loopback interface, so no port is open to other machines.

    Raises:
        UserError: a process failed; the message contains its rank and its error, those of the first if several did.
        KeyboardInterrupt: the processes were interrupted and have stopped.
    """
    logging.disable(logging.WARNING)  # PyTorch's warnings that it stops the other processes
    with TemporaryDirectory() as folder:
        context = start_processes(_work, (main, num_processes, folder), num_processes, join=False)

        def interrupt(number: int, frame: object) -> None:
            for process in context.processes:  # in a terminal they get the signal anyway; a second one does no harm
                if process.is_alive():
                    os.kill(process.pid, number)

        previous_handler = signal.signal(signal.SIGINT, interrupt)
        try:
            while not context.join():
                pass
        except ProcessException:
            exit_codes = [process.exitcode for process in context.processes]
            if errors := sorted(Path(folder).glob("error-*"), key=lambda path: path.stat().st_mtime_ns):
                first = errors[0].name.removeprefix("error-")
                raise UserError(f"process {first} of {num_processes}: {errors[0].read_text()}") from None
            if _INTERRUPTED in exit_codes:
                raise KeyboardInterrupt from None
            for rank, code in enumerate(exit_codes):
                if code < 0 and code != -signal.SIGTERM:  # with SIGTERM, PyTorch stops the other processes
                    raise UserError(
                        f"process {rank} of {num_processes}: killed by {signal.Signals(-code).name}; run again to "
                        "resume from the last checkpoint"
                    ) from None
            raise
        finally:
            signal.signal(signal.SIGINT, previous_handler)


def _work(rank: int, main: Callable[[], None], num_processes: int, folder: str) -> None:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    os.environ |= {
        _RENDEZVOUS: f"file://{folder}/rendezvous",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    } | ({"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} if loopback else {})
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is shared by the processes, and a killed one never releases it
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except UserError as error:
        Path(folder, f"error-{rank}").write_text(str(error))
        sys.exit(1)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Connect to the other processes of the run inside the block; yields the device of this process.

    They communicate with NCCL between CUDA devices and with gloo between CPUs, whose cores they share. Only the
    first process prints; the output of the others is discarded.

    Raises:
        UserError: there are fewer GPUs than processes, or only one process can use the device.
    """
    if not is_launched():
        yield device
        return
    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "mps":
        raise UserError("runtime.num_processes: MPS supports one process only; use 1, or runtime.device: cpu")
    if device.type == "cuda":
        if num_local > torch.cuda.device_count():
            raise UserError(
                f"runtime.num_processes: expected at most the {torch.cuda.device_count()} GPUs of this machine, "
                f"got {num_local}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_local))
    # Gloo on GPUs too: checkpoints are saved from CPU memory while training continues.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=os.environ.get(_RENDEZVOUS, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    if is_first():
        yield device
    else:
        with open(os.devnull, "w") as devnull, redirect_stdout(devnull):
            yield device
    # Not after an error: the others would fail because of the lost connection before its message is written.
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints, shows progress and writes the outputs."""
    return rank() == 0


def progress_bar_disabled() -> bool | None:
    """The argument `disable` of tqdm: only the first process shows progress bars, and only on a terminal."""
    return None if is_first() else True


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of `values`, of any shape, over all processes."""
    if num_processes() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def broadcast_from_first(number: int) -> int:
    """The `number` of the first process, in every process."""
    tensor = torch.tensor(number)
    if num_processes() > 1:
        dist.broadcast(tensor, 0)
    return int(tensor)


def any_process(condition: bool) -> bool:
    """Whether `condition` is true in at least one process."""
    if num_processes() == 1:
        return condition
    flag = torch.tensor(float(condition))
    dist.all_reduce(flag)
    return bool(flag)


def shard(model: TransformerLM, device: torch.device) -> None:
    """Shard the weights over all processes with FSDP2, which gathers one block at a time."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (num_processes(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")


def as_sharded(model: TransformerLM) -> "FSDPModule | None":
    """The model if `shard` has sharded it, or else None."""
    if not dist.is_initialized():
        return None
    from torch.distributed.fsdp import FSDPModule

    return model if isinstance(model, FSDPModule) else None


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds only a shard of `tensor`."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The shard of `tensor` that this process holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of `tensor`, gathered from all processes, which must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """The shard of `tensor`, which every process has in full, that matches this process's shard of `model`."""
    if not is_sharded(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None).to_local()
