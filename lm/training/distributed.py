"""Several processes that train one model together, on PyTorch's own engine: how they start, meet, agree and end.

`launch` starts them on this machine; `torchrun` does so from outside, on several machines too. Every process runs the
same program; `process_group` is where they meet. Without either there is one process, and all of this does nothing.

Each process computes the gradients of its share of a batch. They are averaged by DistributedDataParallel (Li et al.
2020), which keeps the whole model everywhere, or by FSDP2 (Zhao et al. 2023), which keeps a share of weights, gradients
and optimizer everywhere and brings a block together only while it is computed.
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

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.spawn import ProcessException, start_processes
from tqdm import tqdm

from lm.errors import UserError
from lm.model.transformer import TransformerLM

_MEETING = "LM_MEETING"  # the variable by which `launch` tells its processes the file where they meet
_INTERRUPTED = 128 + signal.SIGINT


def is_launched() -> bool:
    """Whether this process is one of several that `launch` or torchrun started."""
    return _MEETING in os.environ or dist.is_torchelastic_launched()


def launch(main: Callable[[], None], num_processes: int) -> None:
    """Run `main`, which finds its arguments in `sys.argv`, in `num_processes` processes of this machine.

    Returns when all have ended. An error in one of them ends the others. They meet in a file and talk over the loopback
    interface: no port is open to other machines.

    Raises:
        UserError: one of them failed; the message is that of the first to do so, and names its rank.
        KeyboardInterrupt: they were interrupted, and have ended in good order.
    """
    logging.disable(logging.WARNING)  # PyTorch's, that it ends the others
    with TemporaryDirectory() as folder:
        context = start_processes(_work, (main, num_processes, folder), num_processes, join=False)

        def interrupt(number: int, frame: object) -> None:
            for process in context.processes:  # in a terminal they are interrupted as well, and once more does no harm
                if process.is_alive():
                    os.kill(process.pid, number)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            while not context.join():
                pass
        except ProcessException:
            exit_codes = [process.exitcode for process in context.processes]
            if errors := sorted(Path(folder).glob("error-*"), key=lambda path: path.stat().st_mtime_ns):
                rank = errors[0].name.removeprefix("error-")
                raise UserError(f"process {rank} of {num_processes}: {errors[0].read_text()}") from None
            if _INTERRUPTED in exit_codes:
                raise KeyboardInterrupt from None
            for rank, code in enumerate(exit_codes):
                if code < 0 and code != -signal.SIGTERM:  # by which the others are ended
                    raise UserError(
                        f"process {rank} of {num_processes}: killed by {signal.Signals(-code).name}; run again to go "
                        "on from the last checkpoint"
                    ) from None
            raise
        finally:
            signal.signal(signal.SIGINT, before)


def _work(rank: int, main: Callable[[], None], num_processes: int, folder: str) -> None:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    os.environ |= {
        _MEETING: f"file://{folder}/meeting",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    } | ({"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} if loopback else {})
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and stays behind when one is killed
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except UserError as error:
        Path(folder, f"error-{rank}").write_text(str(error))
        sys.exit(1)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Meet the other processes, and part from them at the end; yields the device of this one.

    They talk by NCCL between CUDA devices, and by gloo between CPUs, whose cores they share. Only the first one's
    prints are seen.

    Raises:
        UserError: fewer GPUs than processes, or a device that only one process can use.
    """
    if not is_launched():
        yield device
        return
    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "mps":
        raise UserError("runtime.num_processes: MPS serves one process; use 1, or runtime.device: cpu")
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
    # Gloo also for a GPU's processes: checkpoints are saved from the CPU's memory, beside the training.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=os.environ.get(_MEETING, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    if is_first():
        yield device
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield device
    # Not after an error: the others would fail of the lost connection before its message is written down.
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes, prints and shows progress."""
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
    box = torch.tensor(number)
    if num_processes() > 1:
        dist.broadcast(box, 0)
    return int(box)


def any_process(condition: bool) -> bool:
    """Whether `condition` holds in one process at least."""
    if num_processes() == 1:
        return condition
    flag = torch.tensor(float(condition))
    dist.all_reduce(flag)
    return bool(flag)


def shard(model: TransformerLM, device: torch.device) -> None:
    """Leave to every process its share of the weights (FSDP2); the blocks come together one at a time."""
    mesh = init_device_mesh(device.type, (num_processes(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")


def local(tensor: Tensor) -> Tensor:
    """The share of `tensor` that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of `tensor`, which every process must ask for at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """The share of `tensor`, whole in every process, that goes with this process's share of `model`."""
    if isinstance(model, DTensor):
        return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None).to_local()
    return tensor
