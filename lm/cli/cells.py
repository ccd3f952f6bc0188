"""Run a pipeline or a study with several stages side by side.

`dvc repro` runs one stage after the other. This command runs all stages that
have changed and do not depend on each other at the same time, such as the cells
of an ablation. A stage that fails does not stop the others. Ctrl-C stops all of
them; run the same command again to continue.

Examples:
  lm cells                          # the pipeline in this folder
  lm cells studies/scaling --jobs 4
  lm cells studies/ablation --only 'cell@*-1'   # only the runs with seed 1
"""

import argparse
import os
from pathlib import Path

from tqdm import tqdm

from lm.cli.path import path
from lm.errors import UserError

_GPU_DRIVERS = "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"  # of NVIDIA, of AMD, and of either under Windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", type=path, nargs="?", default=Path("."), help="folder with a dvc.yaml (default: this folder)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="stages at the same time (default: one per GPU or processor core, of this machine or the cluster)",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="*",
        help="run only the stages whose names match, and the stages that they need",
    )
    parser.add_argument(
        "--pull", action="store_true", help="take results that another machine has pushed (dvc push --run-cache)"
    )


def run(args: argparse.Namespace) -> None:
    from lm import config
    from lm.studies.side_by_side import run_side_by_side

    params = args.study / "params.yaml"
    # Without its parameters, DVC would complain about the first key that the stages need.
    is_pipeline = params.is_file() or (args.study / "dvc.yaml").is_file()
    cluster = config.load_any(params).runtime.cluster if is_pipeline else "none"
    on_cluster = cluster not in ("none", "local")
    num_gpus = 0 if on_cluster else _num_gpus()  # on a cluster, its machines have the GPUs
    jobs = args.jobs
    if jobs is None and on_cluster:
        from lm.cluster import num_cells_at_once

        jobs = num_cells_at_once(cluster)
    elif jobs is None:
        jobs = num_gpus or os.cpu_count() or 1
    if jobs < 1:
        raise UserError(f"--jobs: expected 1 or more, got {jobs}")
    outcome = run_side_by_side(args.study, jobs, num_gpus, tqdm.write, only=args.only, pull=args.pull)
    if outcome.failed:
        blocked = f", {len(outcome.blocked)} need them and did not run" if outcome.blocked else ""
        raise UserError(
            f"{len(outcome.failed)} of the stages failed{blocked}: {', '.join(outcome.failed)}; run the same command "
            "again when the reasons are fixed"
        )
    print(f"stages that ran: {len(outcome.done)}" if outcome.done else "nothing has changed")


def _num_gpus() -> int:
    """The number of CUDA devices. PyTorch, which takes seconds to import, is asked only where a driver is loaded."""
    if not any(Path(device).exists() for device in _GPU_DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
