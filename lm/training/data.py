"""The data of a training run: the tokens of both splits, and facts from their manifest."""

import os
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
    """The tokens in a memory-mapped file.

    Reading a part of the map that the file no longer has would end the process with SIGBUS, without a message. The size
    of the file is therefore checked before every slice, which takes a microsecond.

    Raises, on reading:
        UserError: the file has become shorter.
    """

    def __init__(self, path: Path, tokens: np.memmap) -> None:
        self._path, self._tokens = path, tokens
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: slice) -> np.ndarray:
        if os.fstat(self._file.fileno()).st_size < self._tokens.nbytes:
            raise UserError(
                f"{self._path}: has become shorter during training; make it again with: dvc repro encode_memmap"
            )
        return self._tokens[index]


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
        train=TokenFile(folder / "train.bin", train),
        val=TokenFile(folder / "val.bin", val),
        val_text_bytes=val_facts["bytes"],
        val_entropy_bits=val_facts.get("entropy_bits"),
        identity=train_facts["sha256"] + val_facts["sha256"],
    )
