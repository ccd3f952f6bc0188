import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # starts two interpreters
def test_ddp_and_fsdp_in_a_group_of_one_process_have_the_losses_of_none(project: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += ["-m", "bench.training.one_process", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
    result = subprocess.run([sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    systems = "| none", "| ddp", "| fsdp"
    rows = [line.split(" | ")[1] for line in result.stdout.splitlines() if line.startswith(systems)]
    assert len(rows) == 3 and len(set(rows)) == 1
