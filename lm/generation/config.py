"""The section `sample` of params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lm.schema import check_range


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the next token is drawn.

    `temperature: 0` always takes the most likely token. `top_k: 0`, `top_p: 1` and `min_p: 0` keep all tokens, and
    `repetition_penalty: 1` leaves the probabilities unchanged.

    The other fields are settings of the server's API, which `params.yaml` does not have. `logit_bias` is added to the
    logits of the token ids that are its keys.

    Raises:
        ValueError: a value is out of range; the message starts with its name.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_sampler(self)

    @property
    def changes_logits(self) -> bool:
        """Whether the most likely token may be another than that of the model."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Which texts are generated: `num_samples` of each prompt, with the seeds `seed`, `seed` + 1, ...

    Each has at most `max_new_tokens` tokens after its prompt. `SamplerConfig` explains the other fields.

    Raises:
        ValueError: a value is out of range; the message starts with its name.
    """

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
        check_range(self, ("num_samples", "max_new_tokens"), 1, 10**6)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        _check_sampler(self)

    @property
    def sampler(self) -> SamplerConfig:
        """The fields that say how a token is drawn."""
        return SamplerConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


def _check_sampler(config: SamplerConfig | SampleConfig) -> None:
    # Within these ranges, neither the values nor the results of applying them become 0 or infinity in float32.
    if config.temperature != 0 and not 0.001 <= config.temperature <= 100:
        limit = "at most 100" if config.temperature > 100 else "0, or 0.001 or more"
        raise ValueError(f"temperature: expected {limit}, got {config.temperature}")
    if config.top_k < 0:
        raise ValueError(f"top_k: expected 0 or more, got {config.top_k}")
    if not 0.001 <= config.top_p <= 1:
        raise ValueError(f"top_p: expected 0.001 to 1, got {config.top_p}")
    if not 0 <= config.min_p <= 1:
        raise ValueError(f"min_p: expected 0 to 1, got {config.min_p}")
    if not 0.1 <= config.repetition_penalty <= 10:
        raise ValueError(f"repetition_penalty: expected 0.1 to 10, got {config.repetition_penalty}")
