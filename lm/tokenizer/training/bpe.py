"""Training a byte-level BPE tokenizer on a text file."""

import os
from collections.abc import Sequence
from pathlib import Path

from lm.errors import UserError, quote
from lm.tokenizer.encoding.vocab import Merges, build_vocab
from lm.tokenizer.text.fast.build import can_load
from lm.tokenizer.text.fast.chunks import resolve_num_threads
from lm.tokenizer.text.fast.text_file import read_blocks
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.text.text_file import read_text
from lm.tokenizer.training import counting, merges
from lm.tokenizer.training.fast import counting as fast_counting
from lm.tokenizer.training.fast import merges as fast_merges

_MIN_BYTES_FOR_FAST = 1 << 20  # for smaller files, loading or compiling the kernels takes longer than it saves


def train_bpe(
    input_path: str | os.PathLike[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    pattern: str = "gpt2",
    num_threads: int | None = None,
) -> tuple[dict[int, bytes], Merges]:
    """Train on a UTF-8 text file of any size; memory depends on the number of distinct pre-tokens.

    Args:
        input_path: The text. Its special tokens separate documents and take part in no merge.
        vocab_size: The number of tokens: 256 bytes, the merges, and the special tokens. If the text runs out of pairs
            to merge, the vocabulary is smaller.
        special_tokens: Different strings of at least two bytes.
        pattern: `gpt2`, `gpt4` or a regular expression.
        num_threads: How many threads count pre-tokens, by default one per core. Only used with `gpt2`.

    Returns:
        The vocabulary, from id to bytes, and the merges in the order in which they were made.

    Raises:
        UserError: An argument is invalid, or the file cannot be read or is not UTF-8.
    """
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise UserError(
            f"tokenizer.vocab_size: expected at least {vocab_size - num_merges} (256 bytes and "
            f"{len(special_tokens)} special), got {vocab_size}"
        )
    pre_tokenizer = PreTokenizer(pattern, special_tokens)
    for token in special_tokens:
        if len(token.encode()) < 2:
            raise UserError(f"tokenizer.special_tokens: expected two bytes or more, got {quote(token)}")
    path = Path(input_path)
    num_bytes = path.stat().st_size if path.is_file() else 0
    num_threads = resolve_num_threads(num_threads, num_bytes)
    if num_bytes >= _MIN_BYTES_FOR_FAST and pre_tokenizer.pattern == PATTERNS["gpt2"] and can_load():
        blocks = read_blocks(path, "counting")
        learned = fast_merges.learn_merges(
            fast_counting.count_pre_tokens(blocks, special_tokens, num_threads), num_merges
        )
    else:
        chunks = read_text(path, "counting")
        learned = merges.learn_merges(counting.count_pre_tokens(chunks, pre_tokenizer), num_merges)
    return build_vocab(learned, special_tokens), learned
