"""The section `data` of params.yaml: which text the model is trained on."""

import re
from dataclasses import dataclass
from typing import Literal

from lm.errors import quote

END_OF_TEXT = "<|endoftext|>"  # follows every document, in text files and in token files

MAX_LIMIT = 10**15  # bytes or documents; a thousand times the largest corpora of today
_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.|\.git$))(?:{_NAME}/)?{_NAME}", re.ASCII)  # as on the Hugging Face hub


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of the text and the amount to use.

    The limits `train_bytes`, `train_documents` and `val_bytes` count documents and UTF-8 bytes of text, without
    end-of-text markers. A split ends with the document that reaches one of its limits; 0 means no limit.

    `openwebtext` uses `repository` and `revision`, and `text_column` if the repository holds Parquet files. `files`
    uses `train_files`, `val_files`, `separator`, `text_column` and, if `val_files` is empty, `val_fraction`: the
    fraction of the documents that is held out as the validation split.
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
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {quote(self.seed)}")
        for name in ("train_bytes", "train_documents", "val_bytes"):
            if not 0 <= getattr(self, name) <= MAX_LIMIT:
                raise ValueError(f"{name}: expected 0 to {MAX_LIMIT}, got {quote(getattr(self, name))}")
        if not _REPOSITORY.fullmatch(self.repository):
            raise ValueError(f"repository: expected OWNER/NAME, got {quote(self.repository)}")
        if not self.revision or self.revision.isspace():
            raise ValueError(f"revision: expected a branch, tag or commit, got {quote(self.revision)}")
        for key in ("train_files", "val_files"):
            for index, name in enumerate(getattr(self, key)):
                if not name or name.isspace() or "\0" in name:
                    found = "a text with a null byte" if "\0" in name else quote(name)
                    raise ValueError(f"{key}[{index}]: expected a path, glob or http(s) URL, got {found}")
        if self.source == "stories" and not (self.val_bytes and (self.train_bytes or self.train_documents)):
            raise ValueError(
                "source: 'stories' generates text without end; set val_bytes, and train_bytes or train_documents"
            )
        if self.source == "files":
            if not self.train_files:
                raise ValueError("train_files: expected at least one path, glob or http(s) URL, got []")
            if not self.separator.replace("\ufeff", ""):  # byte order marks are dropped from every text
                raise ValueError(f"separator: expected the text between two documents, got {quote(self.separator)}")
            if not self.val_files and not 0 < self.val_fraction < 1:
                raise ValueError(
                    f"val_fraction: expected a number between 0 and 1 when val_files is empty, got {self.val_fraction}"
                )
