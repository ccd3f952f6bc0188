"""Jobs: measurements in fresh processes. A job is a JSON object, passed to a module as its only argument.

The module prints its result as a JSON object on the last line of its output.
"""

import json
import subprocess
import sys
from collections.abc import Callable
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
    return start_job(module, job)(timeout)


def start_job(module: str, job: dict[str, Any]) -> Callable[[float], dict[str, Any]]:
    """Start the process of `run_job` and return a function that waits for its result, given the timeout."""
    command = [sys.executable, "-m", module, json.dumps(job)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", cwd=_PROJECT
    )

    def finish(timeout: float) -> dict[str, Any]:
        with process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise NotMeasured(f"took more than {timeout:.0f} s") from None
            finally:
                process.kill()
        if process.returncode:
            raise NotMeasured(f"failed with exit status {process.returncode}: {_error_message(errors)}")
        return json.loads(output.splitlines()[-1])  # libraries may print lines before it

    return finish


def _error_message(stderr: str) -> str:
    """Return the last line that names an error; PyTorch prints advice below it."""
    lines = [line for line in stderr.splitlines() if line and not line[0].isspace()]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception", "error"))]
    return (errors or lines or ["no message"])[-1][:300]
