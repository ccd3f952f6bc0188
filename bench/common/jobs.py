"""Jobs: measurements in fresh processes. A job is a JSON object, passed to a module as its only argument.

The module prints its result as a JSON object on the last line of its output.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).resolve().parent.parent.parent


class NotMeasured(Exception):
    """A system has no result; the message says why in a few words."""


def run_job(module: str, job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run `python -m MODULE JOB` in the project's folder and return the result that it prints.

    Paths in the job must be absolute.

    Raises:
        NotMeasured: the process failed or took longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", module, json.dumps(job)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=timeout, cwd=_PROJECT
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"took more than {timeout:.0f} s") from None
    if done.returncode:
        raise NotMeasured(f"failed with exit status {done.returncode}: {_error_message(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])  # libraries may print lines before it


def _error_message(stderr: str) -> str:
    """Return the last line that names an error; PyTorch prints advice below it."""
    lines = [line for line in stderr.splitlines() if line and not line[0].isspace()]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception", "error"))]
    return (errors or lines or ["no message"])[-1][:300]
