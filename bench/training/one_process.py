"""Train a tiny model in a process group of one process, with the collectives that several processes need.

    torchrun --standalone --nproc-per-node 1 -m bench.training.one_process [--device cuda]

On a GPU they run on NCCL, on a CPU on gloo. The losses of DistributedDataParallel and of FSDP2 are compared with those
of the same training without either. The exit status is 1 if they differ by more than rounding explains.
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bench.common.arguments import make_parser
from bench.common.models import Lm
from bench.common.shapes import OPTIM, SHAPES
from lm.device import pick_device
from lm.errors import UserError, exit_cleanly
from lm.training.distributed import full_tensor, is_launched, process_group, shard, wait_for_all
from lm.training.optimizer import make_optimizer
from lm.training.train_step import TrainStep

_SHAPE = SHAPES["0.8m"]
_NUM_STEPS = 5
_TOLERANCE = 1e-3  # in nats


def main() -> None:
    parser = make_parser("bench.training.one_process", __doc__)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    device = pick_device(parser.parse_args().device)
    if not is_launched():
        raise UserError("no process group; start this with torchrun --standalone --nproc-per-node 1 -m")
    is_equal = True
    with process_group(device) as device:
        wait_for_all()
        total = torch.ones(1, device=device)
        dist.all_reduce(total)
        print(f"{dist.get_backend_config()}, {dist.get_world_size()} process, sum of ones {total.item():.0f}.\n")
        print("| parallelism | losses |", "| --- | --- |", sep="\n")
        expected = losses("none", device)
        for parallelism in ("none", "ddp", "fsdp"):
            found = expected if parallelism == "none" else losses(parallelism, device)
            is_equal = is_equal and max(abs(x - y) for x, y in zip(found, expected, strict=True)) <= _TOLERANCE
            print(f"| {parallelism} | {' '.join(f'{loss:.5f}' for loss in found)} |")
    if not is_equal:
        sys.exit("losses differ by more than rounding explains")


def losses(parallelism: str, device: torch.device) -> list[float]:
    """Return the losses of a few steps on one batch; `parallelism` is `none`, `ddp` or `fsdp`."""
    model = Lm(_SHAPE.model, _SHAPE.vocab_size).model.to(device)
    if parallelism == "fsdp":
        shard(model, device)
    step = TrainStep(model, make_optimizer(model, OPTIM), precision="float32", max_grad_norm=OPTIM.max_grad_norm)
    if parallelism == "ddp":  # which a TrainStep does itself if there are several processes
        step.loss = DistributedDataParallel(step.loss, gradient_as_bucket_view=True)
    ids = torch.randint(_SHAPE.vocab_size, (4, _SHAPE.context_length + 1), generator=torch.Generator().manual_seed(1))
    found = [step(ids[:, :-1], ids[:, 1:], OPTIM.max_learning_rate)[0] for _ in range(_NUM_STEPS)]
    if not all(full_tensor(weight).isfinite().all() for weight in model.parameters()):
        raise RuntimeError("weights are not finite")
    return found


if __name__ == "__main__":
    exit_cleanly(main)
