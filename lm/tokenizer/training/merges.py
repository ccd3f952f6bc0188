"""Learning merges from counted pre-tokens (Sennrich et al. 2016): merge the most frequent pair of tokens, repeatedly.

    >>> merges = learn_merges({"low": 5, "lower": 2, "widest": 3, "newest": 6}, num_merges=6)
    >>> [(left + right).decode() for left, right in merges]
    ['st', 'est', 'ow', 'low', 'west', 'ne']

`st` and `es` both occur 9 times; the lexicographically greater pair, (s, t), goes first.

`lm.tokenizer.reference` computes the same result by counting all pairs again before each merge. Here each merge only
visits its own occurrences, so the time for training is roughly linear in the bytes of the distinct pre-tokens.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping

from tqdm import tqdm

from lm.tokenizer.encoding.vocab import Merges
from lm.tokenizer.text.byte_alphabet import BYTES_IN_ORDER

_BORDER = -1  # between two pre-tokens
_INSIDE = -2  # a position whose token was merged into the one to its left


def learn_merges(counts: Mapping[str, int], num_merges: int) -> Merges:
    """Return the merges for pre-tokens that occur `counts` times; fewer than `num_merges` if the pairs run out."""
    positions = _TokenPositions(counts)
    tokens = [bytes([byte]) for byte in BYTES_IN_ORDER]
    order = [_descending(token) for token in tokens]

    # The greatest count comes first, then the lexicographically greater pair. The count of a pair only rises during
    # the merge that makes the later of its two tokens, before the pair enters the heap; after that it only falls. So
    # the count in an entry is never too low: an outdated entry goes back with its current count, and a current one is
    # the maximum.
    def entry(pair: tuple[int, int]) -> tuple[int, str, str, tuple[int, int]]:
        return -positions.pair_counts[pair], order[pair[0]], order[pair[1]], pair

    heap = [entry(pair) for pair in positions.pair_counts]
    heapq.heapify(heap)
    merges: Merges = []
    with tqdm(total=num_merges, desc="merging", unit="merge", disable=None) as bar:
        while len(merges) < num_merges and heap:
            negative_count, _, _, pair = heapq.heappop(heap)
            count = positions.pair_counts.get(pair, 0)
            if count == -negative_count:
                left, right = pair
                merges.append((tokens[left], tokens[right]))
                tokens.append(tokens[left] + tokens[right])
                order.append(_descending(tokens[-1]))
                for new_pair in positions.merge(pair, len(tokens) - 1):
                    heapq.heappush(heap, entry(new_pair))
                bar.update()
            elif count:
                heapq.heappush(heap, entry(pair))
    return merges


def _descending(token: bytes) -> str:
    """Return a sort key that puts lexicographically greater tokens first.

    Its bytes are complemented, and a character greater than any of them at the end puts a prefix after longer tokens.
    """
    return token.translate(_COMPLEMENT).decode("latin-1") + "\u0100"


_COMPLEMENT = bytes(range(255, -1, -1))


class _TokenPositions:
    """All distinct pre-tokens in one row with one position per byte, where each token is linked to its neighbors.

    `ids[p]` is the token that starts at position p, `next_position[p]` and `previous_position[p]` are the positions of
    its neighbors, and `weight[p]` is the count of its pre-token. There is a border before, between, and after the
    pre-tokens.

    For each pair of neighbors, `pair_counts` is how often it occurs in the text, and `pair_positions` is where it
    occurred when the later of its tokens was made. When another merge breaks up a pair, its position is not removed;
    it is checked before it is used.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        byte_ids = {byte: token_id for token_id, byte in enumerate(BYTES_IN_ORDER)}
        self.ids = [_BORDER]
        self.weight = [0]
        for pre_token, count in counts.items():
            data = pre_token.encode()
            self.ids += [byte_ids[byte] for byte in data]
            self.ids.append(_BORDER)
            self.weight += [count] * (len(data) + 1)
        self.next_position = list(range(1, len(self.ids) + 1))
        self.previous_position = list(range(-1, len(self.ids) - 1))
        self.pair_counts: dict[tuple[int, int], int] = defaultdict(int)
        self.pair_positions: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, pair in enumerate(zip(self.ids, self.ids[1:])):
            if _BORDER not in pair:
                self.pair_counts[pair] += self.weight[position]
                self.pair_positions[pair].append(position)

    def merge(self, pair: tuple[int, int], new: int) -> set[tuple[int, int]]:
        """Replace every occurrence of `pair` by the token `new`, from left to right; return the new pairs.

        A pair that this merge makes and breaks up again, such as (new, a) in `abab`, is not among them.
        """
        ids, weight = self.ids, self.weight
        next_position, previous_position = self.next_position, self.previous_position
        pair_counts, pair_positions = self.pair_counts, self.pair_positions
        left, right = pair
        new_pairs = set()
        for position in pair_positions.pop(pair):
            second = next_position[position]
            if ids[position] != left or ids[second] != right:
                continue
            after = next_position[second]
            before = previous_position[position]
            ids[position] = new
            ids[second] = _INSIDE
            next_position[position] = after
            previous_position[after] = position
            count = weight[position]
            if ids[before] != _BORDER:
                pair_counts[ids[before], left] -= count
                new_pair = ids[before], new
                pair_counts[new_pair] += count
                pair_positions[new_pair].append(before)
                new_pairs.add(new_pair)
            if ids[after] != _BORDER:
                pair_counts[right, ids[after]] -= count
                new_pair = new, ids[after]
                pair_counts[new_pair] += count
                pair_positions[new_pair].append(position)
                new_pairs.add(new_pair)
        del pair_counts[pair]
        return {new_pair for new_pair in new_pairs if pair_counts[new_pair]}
