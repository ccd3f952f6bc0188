"""The section `evaluate` of params.yaml."""

from dataclasses import dataclass

from lm.schema import check_range


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much of the evaluation is done beyond the loss on whole documents. All of it needs the built-in stories.

    `num_samples` texts are generated at temperature 1 and as many with the settings of `sample`. From every val
    document, `pairs_per_kind` minimal pairs of each kind are made. With 0, the samples or the pairs are left out. Text
    i, and the pairs of document i, have the seed `seed` + i.

    Raises:
        ValueError: a value is out of range; the message starts with its name.
    """

    num_samples: int
    pairs_per_kind: int
    seed: int

    def __post_init__(self) -> None:
        check_range(self, ("num_samples",), 0, 10**6)
        check_range(self, ("pairs_per_kind",), 0, 100)
        check_range(self, ("seed",), 0, 2**32 - 1)
