"""The measurement of every system in each case, after a check that all generate the same tokens."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from tqdm import tqdm

from bench.common.jobs import NotMeasured, run_job
from bench.common.shapes import SHAPES, Shape
from bench.common.tables import Problem
from lm.model.config import ModelConfig
from lm.model.cost import parameters

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 34 / 32}  # of int8, with its share of a scale

_MEASURE = "bench.generation.measure"
_TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class Case:
    """What the systems are compared on."""

    shape: str
    dtype: str
    batch_size: int
    prompt_tokens: int = 1

    @property
    def is_prompt(self) -> bool:
        """Whether the time to the first token after a prompt is measured, and not the speed of generation."""
        return self.prompt_tokens > 1

    @property
    def new_tokens(self) -> int:
        return 1 if self.is_prompt else SHAPES[self.shape].context_length - 1

    @property
    def model(self) -> ModelConfig:
        """The model of the shape, with a longer context if the prompt needs it."""
        model = SHAPES[self.shape].model
        return replace(model, context_length=max(model.context_length, self.prompt_tokens + self.new_tokens))

    def __str__(self) -> str:
        what = f"prompt of {self.prompt_tokens}" if self.is_prompt else f"batch size {self.batch_size}"
        return f"{self.shape}, {self.dtype}, {what}"


Run = dict[str, Any]  # a result of bench.generation.measure


@dataclass
class Results:
    """What was measured so far. `limits` are tokens per second; see `bench.generation`."""

    runs: dict[Case, dict[str, list[Run]]] = field(default_factory=dict)
    limits: dict[Case, float] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def compare(
    results: Results, cases: list[Case], systems: list[str], repeats: int, job: dict[str, Any]
) -> Iterator[None]:
    """Measure every system in every case, add to `results`, and yield after each measurement.

    Systems whose ids differ from those of the first one, in float32, are not measured. `job` is what all jobs share:
    `device`, `seconds` and `llama2c`.
    """
    equal: dict[tuple[str, int, int], list[str]] = {}
    with tqdm(total=len(cases) * len(systems) * repeats, unit="process", disable=None) as bar:
        for case in cases:
            shape = SHAPES[case.shape]
            runs = results.runs.setdefault(case, {})
            shared = job | {"task": "generation", "model": asdict(case.model), "vocab_size": shape.vocab_size}
            shared |= {"batch_size": case.batch_size, "new_tokens": case.new_tokens}
            shared |= {"prompt_tokens": case.prompt_tokens}
            key = case.shape, case.batch_size, case.prompt_tokens
            if key not in equal:
                where = str(replace(case, dtype="float32"))
                bar.set_postfix_str(f"{where}, comparing ids")
                equal[key] = equal_systems(systems, shared, results.problems, where)
            weight_bytes = int(weights_per_step(shape) * ELEMENT_BYTES[case.dtype])
            read = run_job(_MEASURE, job | {"task": "bandwidth", "bytes": weight_bytes}, _TIMEOUT)
            results.limits[case] = case.batch_size * read["bytes_per_second"] / weight_bytes
            for _ in range(repeats):
                for system in equal[key]:
                    bar.set_postfix_str(f"{case}, {system}")
                    try:
                        run = run_job(_MEASURE, shared | {"system": system, "dtype": case.dtype}, _TIMEOUT)
                        runs.setdefault(system, []).append(run)
                    except NotMeasured as error:
                        results.problems.append(Problem(system, str(error), str(case)))
                    bar.update()
                    yield


def equal_systems(systems: list[str], shared: dict[str, Any], problems: list[Problem], where: str) -> list[str]:
    """Return the systems whose ids in float32 equal those of the first that works; add the others to `problems`."""
    expected: list[list[int]] | None = None
    equal: list[str] = []
    for system in systems:
        try:
            ids = run_job(_MEASURE, shared | {"system": system, "dtype": "float32", "seconds": 0.0}, _TIMEOUT)["ids"]
        except NotMeasured as error:
            problems.append(Problem(system, str(error), where))
            continue
        expected = expected or ids
        if ids == expected:
            equal.append(system)
        else:
            problems.append(Problem(system, f"its ids differ from those of {equal[0]}", where))
    return equal


def weights_per_step(shape: Shape) -> int:
    """Return the number of weights that a step reads for any number of rows.

    These are all but the embeddings, of which it reads one row per token.
    """
    count = parameters(shape.model, shape.vocab_size)
    return sum(count.values()) - count["token_embeddings"]


def summarize(results: Results) -> list[dict[str, Any]]:
    """Return a row per case and system that was measured."""
    rows = []
    for case, runs in results.runs.items():
        tokens = case.batch_size * case.new_tokens
        for system, of_system in runs.items():
            speed = tokens / median(run["seconds"] for run in of_system)
            row = {
                "system": system,
                "tokens_per_second": speed,  # after a prompt, there is one token, and this is 1 / the time to it
                "share_of_limit": speed / results.limits[case],
                "peak_mb": median(run["peak_mb"] for run in of_system),
                "measurements": len(of_system),
            }
            rows.append({"task": "generation"} | asdict(case) | row)
    return rows
