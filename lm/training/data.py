"""What a training reads: both splits, and what their manifest says of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import open_tokens


@dataclass(frozen=True, kw_only=True)
class Data:
    """The token arrays, and the text that the val split's bits a byte count."""

    train: np.ndarray
    val: np.ndarray
    val_text_bytes: int
    val_entropy_bits: float | None  # of the true distribution, where it is known
    identity: str  # the checksums of both splits


def open_data(folder: Path, tokenizer: Tokenizer) -> Data:
    """Open and check the token files of the stage encode_memmap.

    Raises:
        UserError: they are missing, damaged, or made with another tokenizer.
    """
    train, train_facts = open_tokens(folder, "train", tokenizer.hash)
    val, val_facts = open_tokens(folder, "val", tokenizer.hash)
    return Data(
        train=train,
        val=val,
        val_text_bytes=val_facts["bytes"],
        val_entropy_bits=val_facts.get("entropy_bits"),
        identity=train_facts["sha256"] + val_facts["sha256"],
    )
