"""Training data for the benchmarks: token ids of generated stories."""

from itertools import islice
from pathlib import Path

import numpy as np

from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

_NUM_STORIES = 3000  # about 2 MB
_VOCAB_SIZE = 2000  # the grammar has too few words for more; the other ids of a larger vocabulary never occur


def write_tokens(folder: Path) -> Path:
    """Write token ids as an array file in `folder` and return its path."""
    text = folder / "stories.txt"
    text.write_bytes("".join(story.text + END_OF_TEXT for story in islice(stories(1), _NUM_STORIES)).encode())
    tokenizer = Tokenizer(*train_bpe(text, _VOCAB_SIZE, [END_OF_TEXT]), [END_OF_TEXT])
    path = folder / "tokens.npy"
    np.save(path, tokenizer.encode_array(text.read_bytes().decode()))
    return path
