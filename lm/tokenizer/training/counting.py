"""Counting how often each distinct pre-token of a text occurs, all that BPE training needs to know about the text."""

from collections import Counter
from collections.abc import Iterable

from lm.tokenizer.text.pretokenization import PreTokenizer


def count_pre_tokens(chunks: Iterable[str], pre_tokenizer: PreTokenizer) -> Counter[str]:
    """Count the pre-tokens of a text; the result does not depend on how the text is divided into chunks."""
    counts: Counter[str] = Counter()
    for pre_tokens, _ in pre_tokenizer.stream(chunks):
        counts.update(pre_tokens)
    return counts
