"""The limits of a server."""

import math
from dataclasses import dataclass

_MAX_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single request may ask for, and how many texts the server handles at once."""

    request_bytes: int = 1 << 18
    max_tokens: int = 2048  # per text
    context_length: int | None = None  # of a prompt and its text together; by default as many tokens as the model sees
    choices: int = 16  # texts per request: the number of prompts times `best_of`
    seconds: float = 120.0  # from the request to the end of its last text
    rows: int = 8  # texts that are generated at the same time
    waiting: int = 256  # texts that wait for a free row

    def __post_init__(self) -> None:
        for name in ("request_bytes", "max_tokens", "context_length", "choices", "rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.rows > _MAX_ROWS:
            raise ValueError(f"rows: expected at most {_MAX_ROWS}, since each needs memory, got {self.rows}")
        if self.waiting < 0:
            raise ValueError(f"waiting: expected 0 or more, got {self.waiting}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds: expected a positive number, got {self.seconds}")

    @property
    def max_choices(self) -> int:
        """The number of texts that a request may ask for: `choices`, but no more than the server can hold."""
        return min(self.choices, self.rows + self.waiting)
