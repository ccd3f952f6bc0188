"""Killed, interrupted or failed at any moment, with one process or two: the next run ends with the same bits."""

import dataclasses
import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file


def assert_same_bits(folder: Path, expected: Path) -> None:
    """Compare weights, optimizer state, curve and metrics."""
    assert (folder / "curve.csv").read_bytes() == (expected / "curve.csv").read_bytes()
    assert (folder / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
    for files in ("model/*.safetensors", "last/*.safetensors"):  # which process saves a replicated tensor varies
        ours, theirs = (
            {name: tensor for path in of.glob(files) for name, tensor in load_file(path).items()}
            for of in (folder, expected)
        )
        assert ours.keys() == theirs.keys() and ours
        assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    assert not list(folder.glob("checkpoints/*"))


# For each phase, the number of the call at which the process dies, counted from where the run before it ended.
PHASES = {
    "start": 1,
    "mid step": 6,
    "checkpoint half written": 2,
    "checkpoint without its index": 1,
    "evaluation": 1,
    "outputs": 1,
}


one_and_two = pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])


@one_and_two
def test_kill_minus_nine_in_every_phase_changes_nothing(start, ended, tmp_path, processes):
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    status, _, errors = ended(start(undisturbed, processes))
    assert status == 0, errors
    for phase, count in PHASES.items():
        # The first process writes index and outputs; in the other phases, the second one dies.
        rank = 0 if processes == 1 or phase in ("checkpoint without its index", "outputs") else 1
        status, said, errors = ended(start(run, processes, (phase, count, rank, "die")))
        if processes == 1:
            assert status == -signal.SIGKILL, (phase, errors)
        else:
            message = f"error: process {rank} of 2: killed by SIGKILL; run again to resume from the last checkpoint\n"
            assert status == 1 and errors.endswith(message) and "Traceback" not in errors, (phase, errors)
        assert phase in ("start", "mid step") or "resuming from step" in said, phase
    status, said, errors = ended(start(run, processes))
    assert status == 0 and "resuming from step 12 of 12" in said, errors
    assert_same_bits(run, undisturbed)


@pytest.mark.slow  # the C++ compiler takes most of a minute
def test_a_compiled_run_that_was_killed_ends_with_the_same_bits(start, ended, run, tmp_path):
    both_lengths = dataclasses.replace(run.train, short_fraction=0.5, short_context_length=8)
    run = dataclasses.replace(run, train=both_lengths)
    assert ended(start(tmp_path / "undisturbed", changed=run, compile=True))[0] == 0
    fault = "mid step", 8, 0, "die"
    assert ended(start(tmp_path / "run", fault=fault, changed=run, compile=True))[0] == -signal.SIGKILL
    status, said, errors = ended(start(tmp_path / "run", changed=run, compile=True))
    assert status == 0 and "resuming from step" in said and "without torch.compile" not in said, errors
    assert_same_bits(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_if_one_process_fails_all_stop_and_its_error_is_shown(start, ended, tmp_path, rank):
    status, _, errors = ended(start(tmp_path / "run", 2, ("evaluation", 2, rank, "fail"), fresh=True))
    assert status == 1
    assert errors.endswith(f"error: process {rank} of 2: something is wrong\n") and "Traceback" not in errors


def wait_for_checkpoint(folder: Path, process) -> float:
    """Wait until the first checkpoint is there; returns the time."""
    until = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*/step-*/index.json")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    return time.monotonic()


@pytest.fixture(scope="session")
def longer(run):
    return dataclasses.replace(run, train=dataclasses.replace(run.train, max_steps=90, eval_every=30))


@one_and_two
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(start, ended, longer, tmp_path, processes):
    whole = start(tmp_path / "whole", processes, changed=longer)
    assert ended(whole)[0] == 0
    process = start(tmp_path / "run", processes, changed=longer)
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    status, said, errors = ended(process)
    assert status == 130 and errors.endswith("interrupted\n") and "Traceback" not in errors
    step = int(re.search(r"interrupted: step (\d+) of 90 is saved; run the same command to resume", said)[1])
    status, said, errors = ended(start(tmp_path / "run", processes, changed=longer))
    assert status == 0 and f"resuming from step {step} of 90" in said, errors
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_second_trainer_of_the_same_run_is_refused(start, ended, longer, tmp_path):
    first = start(tmp_path / "run", changed=longer)
    wait_for_checkpoint(tmp_path / "run", first)
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the second one has started
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "checkpoints").symlink_to(tmp_path / "run" / "checkpoints")
    status, _, errors = ended(start(tmp_path / "second", changed=longer))
    first.kill()
    first.communicate()
    assert status == 1 and "another process is training the same run; wait for it or stop it" in errors


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_minus_nine_at_random_moments_changes_nothing(start, ended, longer, tmp_path, processes):
    fresh = processes == 2
    process = start(tmp_path / "whole", processes, changed=longer, fresh=fresh)
    began = wait_for_checkpoint(tmp_path / "whole", process)
    assert ended(process)[0] == 0
    seconds = time.monotonic() - began
    newest_checkpoints = []
    while len(newest_checkpoints) < 20:
        folder = tmp_path / f"{len(newest_checkpoints)}"
        chance = random.Random(len(newest_checkpoints))
        process = start(folder, processes, changed=longer, fresh=fresh)
        wait_for_checkpoint(folder, process)
        time.sleep(chance.uniform(0, seconds))
        pid = int((folder / f"pid-{chance.randrange(processes)}").read_text())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended(process)
        indexes = sorted(folder.glob("checkpoints/*/step-*/index.json"))
        if not indexes:  # this run was faster, and had already ended
            shutil.rmtree(folder)
            seconds *= 0.8
            continue
        newest_checkpoints.append(indexes[-1].parent.name)
        status, _, errors = ended(start(folder, processes, changed=longer, fresh=fresh))
        assert status == 0, errors
        assert_same_bits(folder, tmp_path / "whole")
    print(f"{processes} processes, newest checkpoint at each kill: {newest_checkpoints}")
