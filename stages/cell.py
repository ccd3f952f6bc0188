"""Train one cell of an ablation, a scaling law or a study, in this process or on a machine of the cluster."""

import os
import runpy

from lm import config
from lm.cluster import has_gpus
from lm.errors import UserError, exit_cleanly, quote
from lm.studies.cell_paths import parse_cell_paths
from lm.studies.remote_cell import train_remotely


def main() -> None:
    paths = parse_cell_paths(__doc__)
    runtime = config.load_any(paths.params).runtime
    if runtime.cluster in ("none", "local"):  # one cell has nothing to gain from other processes on this machine
        runpy.run_module("stages.train_cell", run_name="__main__", alter_sys=True)
        return
    # For each process that trains, as many processors as `lm cells` allows it to use, and one GPU if there are any.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise UserError(f"OMP_NUM_THREADS: expected a number of threads, got {quote(threads)}; set it, or unset it")
    num_cpus = int(threads) * runtime.num_processes
    num_gpus = runtime.num_processes if runtime.device != "cpu" and has_gpus(runtime.cluster) else 0
    print(train_remotely(paths, runtime.cluster, num_cpus=num_cpus, num_gpus=num_gpus), end="")


if __name__ == "__main__":
    exit_cleanly(main)
