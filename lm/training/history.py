"""The rows of the loss curve, which checkpoints keep and metrics/train.csv shows.

They are apart from the checkpoints, whose libraries take seconds to import.
"""

from typing import Any

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
