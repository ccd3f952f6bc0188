"""The section `data`: which text the model learns."""

from dataclasses import dataclass
from typing import Literal

END_OF_TEXT = "<|endoftext|>"  # ends every document, in text files and in token files


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text comes from and how much of it is taken.

    The limits count UTF-8 bytes of text, end-of-text markers apart, and documents; a split ends with the document
    that reaches one, and 0 means no limit.
    `repository` and `revision` are read by `openwebtext`; the `*_files`, `separator`, `text_column` and
    `val_fraction` by `files`, where `val_fraction` splits by document when `val_files` is empty.
    """

    source: Literal["stories", "tinystories", "openwebtext", "files"]
    seed: int
    train_bytes: int
    train_documents: int
    val_bytes: int
    repository: str
    revision: str
    train_files: list[str]
    val_files: list[str]
    separator: str
    text_column: str
    val_fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        for name in ("train_bytes", "train_documents", "val_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.source == "stories" and not (self.val_bytes and (self.train_bytes or self.train_documents)):
            raise ValueError(
                "source: the story grammar writes without end; set val_bytes, and train_bytes or train_documents"
            )
        if self.source == "files":
            if not self.train_files:
                raise ValueError("train_files: expected at least one path, glob or http(s) address, got []")
            if not self.separator:
                raise ValueError("separator: expected the text between two documents, got ''")
            if not self.val_files and not 0 < self.val_fraction < 1:
                raise ValueError(
                    f"val_fraction: expected a number between 0 and 1 when val_files is empty, got {self.val_fraction}"
                )
