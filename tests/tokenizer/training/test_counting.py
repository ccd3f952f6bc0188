from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lm.tokenizer import reference
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.training.counting import count_pre_tokens

END = "<|endoftext|>"
SPECIAL = [END, "text|>ba", "\n\n"]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), pattern=st.sampled_from([*PATTERNS]))
def test_counts_are_those_of_the_reference_for_any_chunks(text: str, sizes: list[int], pattern: str) -> None:
    part = text[:600]
    chunks = []
    rest = part
    while rest:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(rest[:size])
        rest = rest[size:]
    expected = Counter(reference.pre_tokenize(part, SPECIAL, PATTERNS[pattern]))
    for token in SPECIAL:
        del expected[token]
    assert count_pre_tokens(chunks, PreTokenizer(pattern, SPECIAL)) == expected
