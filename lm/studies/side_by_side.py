"""Run the stages of a DVC pipeline side by side. `dvc repro` runs one after the other.

DVC allows several `dvc repro --single-item STAGE ...` at the same time, and decides itself whether a stage must run. So
nothing here knows what a stage does: `dvc dag` says which stages need which, and `dvc status` which have changed. DVC
gets these, and the stages that need them, when what they need has finished; several at once, because it takes seconds
to start. After an interruption, the same call continues: finished stages are no longer changed, and training resumes
from its checkpoint.
"""

import fnmatch
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Never

from tqdm import tqdm

from lm.atomic import make_folder
from lm.errors import UserError, quote
from lm.studies import dvc

_LOGS = Path("data/.logs")
_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0


@dataclass
class Outcome:
    """The stages that ran, those that failed with the last line of their output, and those that need a failed one."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)


@dataclass
class _Job:
    """A DVC that runs `stages`, one after the other; those that have finished are taken out of the list."""

    stages: list[str]
    slot: int
    process: subprocess.Popen[bytes]
    log: Path


def run_side_by_side(
    folder: Path, jobs: int, num_gpus: int, report: Callable[[str], None], *, only: str = "*", pull: bool = False
) -> Outcome:
    """Run the changed stages of the pipeline in `folder`, up to `jobs` at the same time.

    Every job gets an equal share of the processor's cores and, if there are several GPUs, one of them. The output of a
    stage goes to a file in `data/.logs`; `report` is called with the last line of it.

    Args:
        only: run the stages whose names match this pattern, such as "cell@*-1", and those that they need.
        pull: restore results that another machine has pushed to DVC's remote instead of running the stages.

    Raises:
        UserError: `folder` has no pipeline, DVC cannot read it, or no stage matches `only`.
        KeyboardInterrupt: on Ctrl-C, SIGTERM or SIGHUP, after all stages have saved their work and stopped.
    """
    if not (folder / "dvc.yaml").is_file():
        raise UserError(f"{folder / 'dvc.yaml'}: there is no such file; expected the folder of a study or a pipeline")
    needs = dvc.needs(folder)
    own = [stage for stage in needs if ":" not in stage]  # a stage of another pipeline is called FILE:STAGE
    if not own:  # DVC shows the stages of all other pipelines then
        raise UserError(f"{folder / 'dvc.yaml'}: expected stages, got none; restore the file")
    wanted = set(fnmatch.filter(own, only))
    if not wanted:
        raise UserError(f"{folder / 'dvc.yaml'}: no stage matches {quote(only)}; list them with: dvc stage list")
    wanted |= _ancestors(wanted, needs)
    changed = set(dvc.changed(folder)) & wanted
    # Whether a stage that needs a changed one must run, DVC decides when its turn comes.
    waiting = (changed | _descendants(changed, needs)) & wanted
    command = ["dvc", "--wait-for-lock", "repro", *(["--pull"] if pull else []), "--single-item"]
    make_folder(folder / _LOGS)
    bar = tqdm(unit="", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}", disable=None)
    with bar, _terminate_as_interrupt():
        return _run(folder, command, waiting, needs, jobs, num_gpus, bar, report)


def work(stage: str) -> float:
    """An estimate of the time that a stage takes, in any unit, from the size and the tokens in the name of a cell.

    It is proportional to the FLOPs of matrix products with 12 · layers · width² weights in the blocks and a vocabulary
    of some thousands. Other stages count as a small one.

    Example: `cell@muon-64x2-400000-1` takes about 16 times as long as `cell@muon-64x2-25000-1`.
    """
    match = re.search(r"[-@](\d+)x(\d+)-(\d+)-", stage)
    if not match:
        return 1e9
    width, layers, tokens = map(int, match.groups())
    return float((12 * layers * width + 2000) * width * tokens)


def _run(
    folder: Path,
    command: list[str],
    waiting: set[str],
    needs: dict[str, set[str]],
    jobs: int,
    num_gpus: int,
    bar: "tqdm[Never]",
    report: Callable[[str], None],
) -> Outcome:
    """Run the stages in `waiting`, each when those that it needs have finished."""
    outcome = Outcome()
    running: list[_Job] = []
    free = list(range(jobs - 1, -1, -1))
    held_up: set[str] = set()
    total = len(waiting)
    bar.total = sum(map(work, waiting))
    try:
        while True:
            unfinished = waiting.union(outcome.failed, *(job.stages for job in running))
            ready = [stage for stage in waiting if not needs[stage] & unfinished]
            if not ready and not running:
                outcome.blocked = sorted(waiting)
                return outcome
            ready.sort(key=lambda stage: ("@" in stage, -work(stage), stage))  # so that the last ones are short
            while ready and free:
                stages = _share(ready, jobs)
                ready = ready[len(stages) :]
                waiting -= set(stages)
                running.append(_start(folder, command, stages, free.pop(), jobs, num_gpus))
            bar.set_description_str(f"{len(outcome.done)} of {total} stages")
            bar.set_postfix_str(", ".join(job.stages[0] for job in running))
            time.sleep(_POLL_SECONDS)
            for job in list(running):
                outputs, failed, has_ended = _results(job)
                for stage, output in outputs.items():
                    job.stages.remove(stage)
                    if stage == failed and dvc.is_locked(output):
                        if stage not in held_up:
                            report(f"{stage} waits for DVC's lock, which another command holds")
                            held_up.add(stage)
                        time.sleep(dvc.RETRY_SECONDS)
                        waiting.add(stage)
                        continue
                    log = folder / _LOGS / f"{stage}.log"
                    log.write_text(output, encoding="utf-8")
                    line = dvc.last_line(output)
                    if stage == failed:
                        outcome.failed[stage] = f"{line or dvc.exit_status(output)} ({log})"
                        report(f"{stage} failed: {outcome.failed[stage]}")
                    elif dvc.is_unchanged(output):
                        total -= 1
                    else:
                        outcome.done.append(stage)
                        report(f"{len(outcome.done)} of {total}: {line or f'{stage}: taken from the cache'}")
                    bar.update(work(stage))
                if has_ended:
                    running.remove(job)
                    free.append(job.slot)
                    waiting |= set(job.stages)  # those after one that has failed
    except BaseException:
        _stop(running)
        raise


def _share(stages: list[str], jobs: int) -> list[str]:
    """The first of `stages`: half of what one of `jobs` must do of them, so that all jobs end at about the same time.

    Example: of seven stages that take equally long, two jobs get one each; of eight, two.
    """
    most = sum(map(work, stages)) / (2 * jobs)
    number = 1
    while number < len(stages) and sum(map(work, stages[: number + 1])) <= most:
        number += 1
    return stages[:number]


def _start(folder: Path, command: list[str], stages: list[str], slot: int, jobs: int, num_gpus: int) -> _Job:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    if num_gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(index) for index in range(num_gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    log = folder / _LOGS / f"job-{slot}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *stages],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches it once, through `_stop`
        )
    return _Job(stages, slot, process, log)


def _results(job: _Job) -> tuple[dict[str, str], str | None, bool]:
    """The outputs of the stages that have ended, which of them has failed, and whether their DVC has ended."""
    status = job.process.poll()  # before the output is read, which is complete then
    text = job.log.read_text(encoding="utf-8", errors="replace")
    outputs = dvc.stage_outputs(text)
    began = [stage for stage in job.stages if stage in outputs]
    if status is None:
        return {stage: outputs[stage] for stage in began[:-1]}, None, False
    if status == 0:
        return {stage: outputs.get(stage, "") for stage in job.stages}, None, True
    named = dvc.failed_stage(text)
    failed = named if named in job.stages else (began or job.stages[:1])[-1]
    done = {stage: outputs[stage] for stage in began if stage != failed}
    return {**done, failed: outputs.get(failed, text)}, failed, True


def _stop(running: list[_Job]) -> None:
    """Interrupt all jobs and wait until they have saved their work; a second Ctrl-C kills them.

    The signal is repeated, because a program that has just been started may miss it.
    """
    try:
        while running := [job for job in running if job.process.poll() is None]:
            for job in running:
                _signal(job, signal.SIGINT)
            _wait(running, _STOP_SECONDS)
    except KeyboardInterrupt:
        for job in running:
            _signal(job, signal.SIGKILL)
        raise


def _wait(running: list[_Job], seconds: float) -> None:
    """Wait until all jobs have ended, or for some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(job.process.poll() is None for job in running):
        time.sleep(_POLL_SECONDS)


def _signal(job: _Job, number: signal.Signals) -> None:
    """Send a signal to a job's DVC, its shell and its program."""
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C, so that no stage runs on when this process is stopped.

    What is ignored stays ignored: SIGHUP under nohup, and SIGINT in the background of a shell script. But programs
    inherit that a signal is ignored, and the stages must stop at a SIGINT. They do not inherit a function.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def ignore(number: int, frame: object) -> None:
        pass

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, ignore if handler == signal.SIG_IGN else interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _descendants(stages: set[str], needs: dict[str, set[str]]) -> set[str]:
    """All stages that need one of `stages`, directly or not."""
    found: set[str] = set()
    while new := {stage for stage, needed in needs.items() if needed & (stages | found)} - found:
        found |= new
    return found


def _ancestors(stages: set[str], needs: dict[str, set[str]]) -> set[str]:
    """All stages that `stages` need, directly or not."""
    found: set[str] = set()
    while new := set().union(*(needs[stage] for stage in stages | found)) - found:
        found |= new
    return found
