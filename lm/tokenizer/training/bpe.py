"""Training a byte-level BPE tokenizer on text files."""

import os
from collections.abc import Sequence
from pathlib import Path

from lm.errors import UserError, quote
from lm.tokenizer.encoding.vocab import Merges, build_vocab
from lm.tokenizer.text.automaton import find_obstacle
from lm.tokenizer.text.fast.build import can_load
from lm.tokenizer.text.fast.chunks import resolve_num_threads
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.training import merges
from lm.tokenizer.training.fast import merges as fast_merges
from lm.tokenizer.training.fast.counting import CountTable
from lm.tokenizer.training.shards import count_files

_MIN_BYTES_FOR_FAST = 1 << 20  # for smaller files, loading or compiling the kernels takes longer than it saves


def train_bpe(
    input_path: str | os.PathLike[str] | Sequence[Path],
    vocab_size: int,
    special_tokens: Sequence[str],
    pattern: str = "gpt2",
    num_threads: int | None = None,
    cluster: str = "none",
    unfinished: Path | None = None,
) -> tuple[dict[int, bytes], Merges]:
    """Train on UTF-8 text of any size; memory depends on the number of distinct pre-tokens.

    Args:
        input_path: The file with the text, or several files that follow each other. Special tokens separate documents
            and take part in no merge. A file ends where a document ends.
        vocab_size: The number of tokens: 256 bytes, the merges, and the special tokens. If the text runs out of pairs
            to merge, the vocabulary is smaller.
        special_tokens: Different strings of at least two bytes.
        pattern: A name in `PATTERNS`, such as `gpt2`, or a regular expression.
        num_threads: How many threads count pre-tokens, by default one per core. A pattern that cannot be compiled is
            counted by one thread.
        cluster: Where the pre-tokens of several files are counted, as in `lm.cluster.flat_map`.
        unfinished: A folder from which counting several files continues after an interruption.

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
    paths = [Path(input_path)] if isinstance(input_path, str | os.PathLike) else list(input_path)
    are_files = all(path.is_file() for path in paths)
    num_bytes = sum(path.stat().st_size for path in paths) if are_files else 0
    counts = count_files(
        paths,
        special_tokens,
        pattern,
        fast=num_bytes >= _MIN_BYTES_FOR_FAST and can_load() and find_obstacle(pre_tokenizer.pattern) is None,
        num_threads=resolve_num_threads(num_threads, num_bytes),
        cluster=cluster,
        unfinished=unfinished,
    )
    if isinstance(counts, CountTable):
        learned = fast_merges.learn_merges(counts, num_merges)
    else:
        learned = merges.learn_merges(counts, num_merges)
    return build_vocab(learned, special_tokens), learned
