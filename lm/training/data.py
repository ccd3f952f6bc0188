"""The data of a training run: the tokens of both splits, and facts from their manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.files import open_tokens


class Tokens(Protocol):
    """The tokens of a split, which are read in slices: an array, or `TokenFiles`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


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
        train=train,
        val=val,
        val_text_bytes=val_facts["bytes"],
        val_entropy_bits=val_facts.get("entropy_bits"),
        identity=" ".join(shard["sha256"] for shard in train_facts["shards"] + val_facts["shards"]),
    )
