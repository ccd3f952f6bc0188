"""Jobs: a measurement in a fresh process, which gets a JSON object as its argument and prints one as its last line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class NotMeasured(Exception):
    """Why a system has no figure, in a few words."""


def run_job(script: Path, job: dict[str, Any], timeout: float, python: str | None = None) -> dict[str, Any]:
    """What `script` prints for `job`; `python` is another environment's interpreter, which then finds `lm` here.

    Raises:
        NotMeasured: the process failed, with the last line of its complaint, or took over `timeout` seconds.
    """
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [python or sys.executable, str(script), json.dumps(job)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout, env=environment, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"not done after {timeout:.0f} s") from None
    except OSError as error:
        raise NotMeasured(f"{command[0]} cannot be run ({error.strerror})") from error
    if done.returncode:
        raise NotMeasured(f"failed, exit status {done.returncode}: {_complaint(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])  # libraries print too


def _complaint(stderr: str) -> str:
    """The last line of a traceback that starts at the margin: PyTorch puts advice below the error."""
    lines = [line for line in stderr.splitlines() if line and not line[0].isspace()]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception", "error"))]
    return (errors or lines or ["no message"])[-1][:300]
