"""What DVC says: which stages of a pipeline need which, which have changed, and what happened to those that it ran."""

import json
import re
import subprocess
import time
from pathlib import Path

from lm.errors import UserError

RETRY_SECONDS = 1.0  # between two attempts while another command holds DVC's lock

# One of these lines begins the output of a stage.
_BEGINNING = re.compile(r"^(?:Running stage|Stage) '([^']+)'(?::$| is cached| didn't change)", re.MULTILINE)
_UNCHANGED = re.compile(r"Stage '[^']+' didn't change")
_FAILED = re.compile(r"^ERROR: failed to reproduce '([^']+)'", re.MULTILINE)
_NOT_ABOUT_ITS_WORK = re.compile(
    r"Running stage |> |Stage '|(Updating|Generating) lock |To track the |To enable auto|\t|Use `dvc push|Data and pipe"
    r"|ERROR: failed to reproduce '[^']*': failed to run: "
    r"|\d+\.\d s, of which \d+\.\d s were start-up"  # the last line of every stage but a cell
)
# DVC ends with one of these messages if another command holds a lock. `repro` waits for the lock of the project, but
# not for the files of a stage.
_LOCKED = re.compile(r"Unable to acquire lock|is being blocked by|has been locked by")


def needs(folder: Path) -> dict[str, set[str]]:
    """The stages of a pipeline, and which others each one needs directly."""
    text = _dvc(folder, "dag", "--dot", "dvc.yaml")
    found: dict[str, set[str]] = {name: set() for name in re.findall(r'^"([^"]+)";$', text, re.MULTILINE)}
    for needed, stage in re.findall(r'^"([^"]+)" -> "([^"]+)";$', text, re.MULTILINE):
        found[stage].add(needed)
    return found


def changed(folder: Path) -> list[str]:
    """The stages that must run, in the order of the pipeline."""
    return list(json.loads(_dvc(folder, "status", "--json", "dvc.yaml")))


def _dvc(folder: Path, *command: str) -> str:
    """The output of a DVC command; waits while another command holds DVC's lock."""
    while True:
        try:
            result = subprocess.run(
                ["dvc", *command], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
            )
        except FileNotFoundError as error:
            raise UserError("dvc: there is no such command; activate the environment: . .venv/bin/activate") from error
        if result.returncode == 0:
            return result.stdout
        if not is_locked(result.stderr):
            reason = " ".join(result.stderr.split()).removeprefix("ERROR: ")
            advice = "correct it and run the same command again"
            if "dvc.lock" in reason:
                advice = (
                    "keep either version of the file (git checkout --ours dvc.lock); the cache has the other results"
                )
            raise UserError(f"{folder}: dvc {' '.join(command)}: {reason}; {advice}")
        time.sleep(RETRY_SECONDS)


def is_locked(output: str) -> bool:
    """Whether a command has ended because another one holds a lock."""
    return _LOCKED.search(output) is not None


def stage_outputs(output: str) -> dict[str, str]:
    """The part of the output of `dvc repro` that belongs to each stage, in the order in which they began."""
    beginnings = list(_BEGINNING.finditer(output))
    ends = [match.start() for match in beginnings[1:]] + [len(output)]
    return {match[1]: output[match.start() : end] for match, end in zip(beginnings, ends)}


def failed_stage(output: str) -> str | None:
    """The stage at which `dvc repro` has ended, if it says so."""
    match = _FAILED.search(output)
    return match[1] if match else None


def is_unchanged(output: str) -> bool:
    """Whether a stage, from its output, did not have to run."""
    return _UNCHANGED.match(output) is not None


def last_line(output: str) -> str | None:
    """The last line of a stage about its work, without those of DVC around it; of a failed one, its error.

    None if it has written nothing, or did not run.
    """
    lines = [line for line in output.splitlines() if line.strip() and not _NOT_ABOUT_ITS_WORK.match(line)]
    errors = [line for line in lines if line.startswith("error: ")]
    written = errors or lines
    return written[-1] if written else None


def exit_status(output: str) -> str:
    """What DVC says about a stage that failed without a word, because it was killed, for example."""
    match = re.search(r"exited with (-?\d+)\s*$", output)
    return f"it wrote no message{f' and exited with status {match[1]}' if match else ''}"
