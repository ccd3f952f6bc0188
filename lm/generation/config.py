"""The section `sample`."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a token is drawn.

    `temperature: 0` is greedy; `top_k: 0`, `top_p: 1` and `min_p: 0` keep every token, `repetition_penalty: 1` all as
    likely as they are.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.001 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected 0, or 0.001 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected 0 to 1, got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty: expected a positive number, got {self.repetition_penalty}")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """`num_samples` texts of each prompt, with the seeds `seed`, `seed` + 1, ...; see `SamplerConfig`."""

    prompts: list[str]
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts: expected at least one, got []")
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        _ = self.sampler  # which checks the rest

    @property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )
