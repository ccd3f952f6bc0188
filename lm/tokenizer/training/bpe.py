"""Training byte-level BPE (Sennrich et al. 2016): merge the most frequent pair of tokens, again and again.

    >>> merges = learn_merges({"low": 5, "lower": 2, "widest": 3, "newest": 6}, num_merges=6)
    >>> [(left + right).decode() for left, right in merges]
    ['st', 'est', 'ow', 'low', 'west', 'ne']

`st` and `es` both occur 9 times: the lexicographically greater pair, (s, t), goes first. A merge costs time in
proportion to its own occurrences, wherever they are, so the whole training is about linear in the bytes of the
distinct pre-tokens.
"""

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from lm.errors import UserError
from lm.tokenizer.text.byte_alphabet import BYTES_IN_ORDER
from lm.tokenizer.text.fast.build import can_load
from lm.tokenizer.text.fast.chunks import resolve_num_threads
from lm.tokenizer.text.fast.text_file import read_blocks
from lm.tokenizer.text.pretokenization import PATTERNS, PreTokenizer
from lm.tokenizer.text.text_file import read_text
from lm.tokenizer.training.fast.learner import Merges
from lm.tokenizer.training.fast.learner import learn_merges as bulk_learn_merges

_BULK_BYTES = 1 << 20  # from which on kernels are worth loading

_BORDER = -1  # parts two pre-tokens
_GONE = -2  # a position whose token was merged into the one to its left


def train_bpe(
    input_path: str | os.PathLike[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    pattern: str = "gpt2",
    num_threads: int | None = None,
) -> tuple[dict[int, bytes], Merges]:
    """Train on a UTF-8 text file of any size; memory depends on the number of distinct pre-tokens.

    Args:
        input_path: its special tokens part documents and take part in no merge.
        vocab_size: 256 bytes, the merges and the special tokens together. When the text runs out of pairs first,
            the vocabulary is smaller.
        special_tokens: different strings of two or more bytes.
        pattern: `gpt2`, `gpt4` or a regular expression.
        num_threads: that count pre-tokens, by default one for each core; only with `gpt2`.

    Returns:
        The vocabulary, from id to bytes, and the merges in the order of their making.

    Raises:
        UserError: a bad argument, or a file that cannot be read or is not UTF-8.
    """
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise UserError(
            f"tokenizer.vocab_size: expected at least {vocab_size - num_merges} (256 bytes and "
            f"{len(special_tokens)} special), got {vocab_size}"
        )
    for token in special_tokens:
        if len(token.encode()) < 2:
            raise UserError(f"tokenizer.special_tokens: expected two bytes or more, got {token!r}")
    pre_tokenizer = PreTokenizer(pattern, special_tokens)
    path = Path(input_path)
    length = path.stat().st_size if path.is_file() else 0
    num_threads = resolve_num_threads(num_threads, length)
    if length >= _BULK_BYTES and pre_tokenizer.pattern == PATTERNS["gpt2"] and can_load():
        merges = bulk_learn_merges(read_blocks(path, "counting"), num_merges, special_tokens, num_threads)
    else:
        merges = learn_merges(count_pre_tokens(read_text(path, "counting"), pre_tokenizer), num_merges)
    return build_vocab(merges, special_tokens), merges


def count_pre_tokens(chunks: Iterable[str], pre_tokenizer: PreTokenizer) -> Counter[str]:
    """How often each distinct pre-token occurs in a text, the same however the text is divided into chunks."""
    counts: Counter[str] = Counter()
    for pre_tokens, _ in pre_tokenizer.stream(chunks):
        counts.update(pre_tokens)
    return counts


def build_vocab(merges: Merges, special_tokens: Sequence[str]) -> dict[int, bytes]:
    """Ids in GPT-2's order: the 256 bytes (in its own order, `!` first), the merges, the special tokens."""
    tokens = [bytes([byte]) for byte in BYTES_IN_ORDER]
    tokens += [left + right for left, right in merges]
    tokens += [token.encode() for token in special_tokens]
    return dict(enumerate(tokens))


def learn_merges(counts: Mapping[str, int], num_merges: int) -> Merges:
    """The merges, at most `num_merges`, of pre-tokens that occur `counts` times."""
    words = _Words(counts)
    tokens = [bytes([byte]) for byte in BYTES_IN_ORDER]
    order = [_descending(token) for token in tokens]

    # The greatest count first, then the lexicographically greater pair. Counts of a pair only rise in the merge that
    # makes the later of its two tokens, before it enters the heap; from then on they only fall. So an entry is never
    # too low: one that is too high goes back with its present count, and one that is right is the maximum.
    def entry(pair: tuple[int, int]) -> tuple[int, str, str, tuple[int, int]]:
        return -words.pair_counts[pair], order[pair[0]], order[pair[1]], pair

    heap = [entry(pair) for pair in words.pair_counts]
    heapq.heapify(heap)
    merges: Merges = []
    with tqdm(total=num_merges, desc="merging", unit="merge") as bar:
        while len(merges) < num_merges and heap:
            negative_count, _, _, pair = heapq.heappop(heap)
            count = words.pair_counts.get(pair, 0)
            if count == -negative_count:
                left, right = pair
                merges.append((tokens[left], tokens[right]))
                tokens.append(tokens[left] + tokens[right])
                order.append(_descending(tokens[-1]))
                for new_pair in words.merge(pair, len(tokens) - 1):
                    heapq.heappush(heap, entry(new_pair))
                bar.update()
            elif count:
                heapq.heappush(heap, entry(pair))
    return merges


def _descending(token: bytes) -> str:
    """A sort key that puts the lexicographically greater token first: complemented bytes and a greatest last one."""
    return token.translate(_COMPLEMENT).decode("latin-1") + "\u0100"


_COMPLEMENT = bytes(range(255, -1, -1))


class _Words:
    """All distinct pre-tokens in one row of positions, one a byte, linked from token to token.

    `ids[p]` is the token that starts at position p, `following[p]` and `preceding[p]` are the positions of its
    neighbours, `weight[p]` is the count of its pre-token. A border stands before, between and after the pre-tokens.
    `pair_counts` and `positions` know each pair of neighbours: how often it occurs in the text, and where it was when
    its later token was made. A position is not removed when its pair is broken up there, but checked when it is used.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        byte_ids = {byte: token_id for token_id, byte in enumerate(BYTES_IN_ORDER)}
        self.ids = [_BORDER]
        self.weight = [0]
        for word, count in counts.items():
            data = word.encode()
            self.ids += [byte_ids[byte] for byte in data]
            self.ids.append(_BORDER)
            self.weight += [count] * (len(data) + 1)
        self.following = list(range(1, len(self.ids) + 1))
        self.preceding = list(range(-1, len(self.ids) - 1))
        self.pair_counts: dict[tuple[int, int], int] = defaultdict(int)
        self.positions: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, pair in enumerate(zip(self.ids, self.ids[1:])):
            if _BORDER not in pair:
                self.pair_counts[pair] += self.weight[position]
                self.positions[pair].append(position)

    def merge(self, pair: tuple[int, int], new: int) -> set[tuple[int, int]]:
        """Put the token `new` wherever `pair` stands, from left to right; return the pairs that this makes.

        A pair that is made and broken up again, as (new, a) in `abab`, is not among them.
        """
        ids, following, preceding, weight = self.ids, self.following, self.preceding, self.weight
        pair_counts, positions = self.pair_counts, self.positions
        left, right = pair
        new_pairs = set()
        for position in positions.pop(pair):
            second = following[position]
            if ids[position] != left or ids[second] != right:
                continue
            after = following[second]
            before = preceding[position]
            ids[position] = new
            ids[second] = _GONE
            following[position] = after
            preceding[after] = position
            count = weight[position]
            if ids[before] != _BORDER:
                pair_counts[ids[before], left] -= count
                made = ids[before], new
                pair_counts[made] += count
                positions[made].append(before)
                new_pairs.add(made)
            if ids[after] != _BORDER:
                pair_counts[right, ids[after]] -= count
                made = new, ids[after]
                pair_counts[made] += count
                positions[made].append(position)
                new_pairs.add(made)
        del pair_counts[pair]
        return {made for made in new_pairs if pair_counts[made]}
