"""The data of a training run: the tokens of both splits, and facts from their manifest."""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import open_tokens


class Tokens(Protocol):
    """The tokens of a split, which are read in slices: an array, or a `TokenFile`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


class TokenFile:
    """The tokens in a file. A slice of them is read from the file, and is an array.

    A memory map would be as fast, but a file that becomes shorter during training would end the process with SIGBUS,
    without a message.

    Raises, on reading:
        UserError: the file has become shorter, or cannot be read.
    """

    def __init__(self, path: Path, dtype: np.dtype, count: int) -> None:
        self._path, self._dtype, self._count = path, dtype, count
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: slice) -> np.ndarray:
        positions = range(self._count)[index]
        tokens = np.empty(len(positions), self._dtype)
        try:
            self._file.seek(positions.start * tokens.itemsize)
            num_bytes = self._file.readinto(tokens.data)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read ({error.strerror}); run again to resume") from error
        if num_bytes < tokens.nbytes:
            raise UserError(
                f"{self._path}: has become shorter during training; make it again with: dvc repro encode_memmap"
            )
        return tokens


@dataclass(frozen=True, kw_only=True)
class Data:
    """The tokens of both splits, and what is needed to report the val loss in bits per byte."""

    train: Tokens
    val: Tokens
    val_text_bytes: int  # UTF-8 bytes of the val split's text
    val_entropy_bits: float | None  # entropy of the val split under the true distribution, where that is known
    identity: str  # checksums of both splits


def open_data(folder: Path, tokenizer: Tokenizer) -> Data:
    """Open and check the token files that the stage encode_memmap wrote.

    Raises:
        UserError: the files are missing or damaged, or were encoded with a different tokenizer.
    """
    train, train_facts = open_tokens(folder, "train", tokenizer.hash)
    val, val_facts = open_tokens(folder, "val", tokenizer.hash)
    return Data(
        train=TokenFile(folder / "train.bin", train.dtype, len(train)),
        val=TokenFile(folder / "val.bin", val.dtype, len(val)),
        val_text_bytes=val_facts["bytes"],
        val_entropy_bits=val_facts.get("entropy_bits"),
        identity=train_facts["sha256"] + val_facts["sha256"],
    )
