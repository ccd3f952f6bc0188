"""Which cases are measured, and the measurement of every system in each of them."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bench.common.jobs import NotMeasured, run_job
from bench.common.models import SAME_FUNCTION, attentions
from bench.common.shapes import OPTIM, SHAPES
from bench.common.tables import OURS, Problem
from lm.errors import UserError
from lm.model.cost import training_flops_per_token

COMPARED = ["lm", "transformers", "nanogpt", "llama2c", "litgpt"]

_MEASURE = "bench.training.measure"
_TIMEOUT = 900.0  # seconds
_START_TOLERANCE = 0.05  # relative to ln(vocab_size)
_SAME_FUNCTION_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # in nats; bfloat16 has 8 bits of precision


@dataclass(frozen=True)
class Case:
    """What the systems are compared on."""

    shape: str
    dtype: str
    compile: bool
    batch_size: int

    def __str__(self) -> str:
        return f"{self.shape}, {self.dtype}, {'compiled' if self.compile else 'eager'}, batch size {self.batch_size}"


@dataclass(frozen=True)
class Setup:
    """How a system is run in a case."""

    system: str
    allocator: str
    attention: str


Run = dict[str, Any]  # a result of bench.training.measure
RunsBySetup = dict[Setup, list[Run]]


@dataclass
class Results:
    """What was measured so far. `peak_flops` is by dtype, the highest FLOP/s of a large matrix multiplication."""

    runs: dict[Case, RunsBySetup] = field(default_factory=dict)
    peak_flops: dict[str, float] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def compare(
    results: Results,
    cases: list[Case],
    checkouts: dict[str, Path | None],
    allocators: list[str],
    repeats: int,
    job: dict[str, Any],
) -> Iterator[None]:
    """Measure every system in every case, add to `results`, and yield after each measurement.

    Each attention implementation of a system is tried once, with one allocator; the further measurements use the
    fastest one.

    Args:
        results: where the measurements go.
        cases: the cases, in order.
        checkouts: the systems, and the folders of their source code where they need one.
        allocators: `default`, `tuned`, or both.
        repeats: the number of measurements per system and allocator.
        job: what all jobs share: `device`, `tokens` and `seconds`.
    """
    setups = [setup for system in checkouts for setup in setups_of(system, allocators, job["device"])]
    first_allocator = {setup.system: setup.allocator for setup in reversed(setups)}
    num_trials = sum(setup.allocator == first_allocator[setup.system] for setup in setups)
    num_repeated = len({(setup.system, setup.allocator) for setup in setups})
    total = len(cases) * (num_trials + repeats * num_repeated - len(checkouts))
    with tqdm(total=total, unit="process", disable=None) as bar:
        for case in cases:
            shape = SHAPES[case.shape]
            runs = results.runs.setdefault(case, {})
            shared = job | asdict(case) | {"task": "training", "vocab_size": shape.vocab_size}
            shared |= {"model": asdict(shape.model), "optim": asdict(OPTIM)}
            # Measured again for each case, keeping the highest, because other work may slow the machine at any time.
            found = peak_flops(case.dtype, job)
            results.peak_flops[case.dtype] = max(found, results.peak_flops.get(case.dtype, 0.0))
            for repeat in range(repeats):
                for setup in setups:
                    is_trial = repeat == 0 and setup.allocator == first_allocator[setup.system]
                    if not is_trial and setup.attention != fastest_attention(runs, setup.system):
                        continue
                    bar.set_postfix_str(f"{case}, {setup.system}, {setup.attention}")
                    try:
                        run = train(shared | asdict(setup), checkouts[setup.system])
                        check_first_loss(run, setup, runs, case.dtype, shape.vocab_size)
                        runs.setdefault(setup, []).append(run)
                    except NotMeasured as error:
                        where = f"{case}, {setup.attention} attention"
                        results.problems.append(Problem(setup.system, str(error), where))
                    bar.update()
                    yield


def setups_of(system: str, allocators: list[str], device: str) -> list[Setup]:
    """Return the setups of a system. Ours is measured with one allocator, because it tunes the allocator itself."""
    own = ["tuned"] if system == OURS else allocators
    return [Setup(system, allocator, attention) for allocator in own for attention in attentions(system, device)]


def peak_flops(dtype: str, job: dict[str, Any]) -> float:
    """Measure the FLOP/s of a large matrix multiplication.

    Raises:
        UserError: the measurement failed.
    """
    try:
        return run_job(_MEASURE, job | {"task": "matmul", "dtype": dtype}, _TIMEOUT)["flops_per_second"]
    except NotMeasured as error:
        raise UserError(f"cannot measure the peak speed of this machine in {dtype}: {error}") from error


def train(job: dict[str, Any], checkout: Path | None) -> Run:
    """Measure a system once in a fresh process.

    Raises:
        NotMeasured: the process failed.
    """
    return run_job(_MEASURE, job | {"checkout": str(checkout) if checkout else None}, _TIMEOUT)


def check_first_loss(run: Run, setup: Setup, runs: RunsBySetup, dtype: str, vocab_size: int) -> None:
    """Check that the first loss of a run shows it doing the same work as the others.

    Raises:
        NotMeasured: the loss is far from ln(vocab_size), or from ours with the same weights.
    """
    loss, expected = run["first_loss"], math.log(vocab_size)
    if not abs(loss - expected) <= _START_TOLERANCE * expected:
        raise NotMeasured(f"its first loss is {loss:.3f}, far from ln(vocab_size) = {expected:.3f}")
    ours = next((runs[0]["first_loss"] for other, runs in runs.items() if other.system == OURS), None)
    if ours is not None and setup.system in SAME_FUNCTION and abs(loss - ours) > _SAME_FUNCTION_TOLERANCE[dtype]:
        raise NotMeasured(f"its first loss is {loss:.5f}, ours with the same weights is {ours:.5f}")


def fastest_attention(runs: RunsBySetup, system: str) -> str | None:
    """Return the attention of a system's fastest setup, or None if it failed with each."""
    setups = [setup for setup in runs if setup.system == system]
    return min(setups, key=lambda setup: _seconds(runs[setup])).attention if setups else None


def fastest_setups(runs: RunsBySetup) -> list[Setup]:
    """Return, for each system and allocator, the setup with the fastest attention."""
    best: dict[tuple[str, str], Setup] = {}
    for setup in sorted(runs, key=lambda setup: _seconds(runs[setup]), reverse=True):
        best[setup.system, setup.allocator] = setup
    return [setup for setup in runs if setup in best.values()]


def summarize(results: Results, allocators: list[str]) -> list[dict[str, Any]]:
    """Return a row per case, allocator and system that was measured; ours appears under each allocator."""
    rows = []
    for case, runs in results.runs.items():
        shape = SHAPES[case.shape]
        flops = training_flops_per_token(shape.model, shape.vocab_size)
        tokens = case.batch_size * shape.context_length
        for setup in fastest_setups(runs):
            of_setup = runs[setup]
            speeds = {
                other.attention: round(tokens / _seconds(of_other))
                for other, of_other in runs.items()
                if (other.system, other.allocator) == (setup.system, setup.allocator)
            }
            seconds = _seconds(of_setup)
            row = {
                "system": setup.system,
                "tokens_per_second": tokens / seconds,
                "mfu": tokens / seconds * flops / results.peak_flops[case.dtype],
                "peak_mb": median(run["peak_mb"] for run in of_setup),
                "seconds_per_step": seconds,
                "first_step_seconds": median(run["first_step_seconds"] for run in of_setup),
                "first_loss": of_setup[0]["first_loss"],
                "parameters": of_setup[0]["parameters"],
                "attention": setup.attention,
                "tokens_per_second_by_attention": speeds,
                "measurements": len(of_setup),
            }
            own = allocators if setup.system == OURS else [setup.allocator]
            rows += [{"task": "training"} | asdict(case) | {"allocator": allocator} | row for allocator in own]
    return rows


def _seconds(runs: list[Run]) -> float:
    return median(run["seconds_per_step"] for run in runs)
