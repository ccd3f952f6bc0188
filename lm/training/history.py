"""How far a training run has come, and its loss curve."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import TypedDict

History = list[dict[str, Any]]


class HistoryRow(TypedDict):
    """A row of the loss curve; None means unknown or not finite."""

    step: int
    learning_rate: float
    train_loss: float | None
    val_loss: float | None
    floor_nats: float | None
    val_bits_per_byte: float | None
    floor_bits_per_byte: float | None
    document_bits_per_byte: float | None
    later_name_nats: float | None
    later_other_nats: float | None
    wording_nats: float | None
    repeated_pair_nats: float | None
    new_pair_nats: float | None
    grad_norm: float | None
    continuation: str


@dataclass
class Progress:
    """How far a run has come. `losses` are those of the steps since the last evaluation."""

    step: int
    history: History
    losses: list[float]
    skipped_steps: Annotated[int, Ge(0)] = 0

    @property
    def evaluated(self) -> bool:
        """Whether the last evaluation was at this step."""
        return bool(self.history) and self.history[-1]["step"] == self.step
