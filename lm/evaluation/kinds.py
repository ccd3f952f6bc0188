"""What each token of a document is: wording, or the first or a later mention of somebody or something.

Nobody can know a first mention, because the grammar draws it. A later mention repeats a word that is in the text, so a
model that looks back can copy it, once it knows who or what comes next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from tqdm import tqdm

from lm.corpus.config import END_OF_TEXT
from lm.corpus.grammar_reader import Part, Reading, read
from lm.corpus.stories import story_grammar
from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer

Kind = Literal["wording", "first_name", "first_other", "later_name", "later_other", "attribute"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The people of the stories. Pets also have names, but there is at most one pet in a story.
_NAMES = ("hero", "friend")


@dataclass(frozen=True)
class TokenKinds:
    """The kinds of a story's tokens, as indices into KINDS, and the tokens' exact -log2 p; each array (N,)."""

    kinds: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True)
class ReadStory:
    """A story, and what the built-in grammar says about it."""

    text: str
    reading: Reading
    tokens: TokenKinds


def read_stories(documents: Sequence[np.ndarray], tokenizer: Tokenizer, disable: bool | None = None) -> list[ReadStory]:
    """Read documents, given by their token ids, by the built-in grammar. `disable` is that of the progress bar.

    Raises:
        UserError: the grammar cannot derive a document.
    """
    grammar = story_grammar()
    stories = []
    for index, ids in enumerate(tqdm(documents, "reading", unit="story", delay=1, leave=False, disable=disable)):
        tokens = [tokenizer.decode_bytes([token_id]) for token_id in ids.tolist()]
        text = b"".join(tokens).decode().removesuffix(END_OF_TEXT)
        reading = read(grammar, text)
        if reading.mistake is not None:
            raise UserError(
                f"val document {index + 1}: not a story of the built-in grammar, from character {reading.mistake + 1} "
                "on; make the text again with: dvc repro download encode_memmap"
            )
        stories.append(ReadStory(text, reading, token_kinds(text, reading, tokens)))
    return stories


def kind(part: Part) -> Kind:
    """The kind of a part of a story. An `attribute` is a pronoun, or any other text that follows from a word."""
    if part.slot is None:
        return "wording"
    is_name = part.slot.variable in _NAMES
    if part.is_first:
        return "first_name" if is_name else "first_other"
    if part.slot.repeats_word:
        return "later_name" if is_name else "later_other"
    return "attribute"


def token_kinds(text: str, reading: Reading, tokens: Sequence[bytes]) -> TokenKinds:
    """Assign the characters of a story to its tokens.

    A token has the kind of its first character that is not white space, because most tokens begin with the space before
    a word; a token of white space only is wording. It has the bits of the characters that begin in it, so the bits of
    all tokens sum to those of the story.

    Args:
        text: The story.
        reading: What the grammar says about it, without a mistake.
        tokens: The bytes of its tokens, and of those after it, such as the end-of-text token, which is `wording` and
            has no bits, because a story is never the beginning of another one.

    Example: if Tom was mentioned before, the tokens "Then", " Tom" and " sat" have the kinds wording, later_name and
    wording.
    """
    starts = np.cumsum([0, *map(len, tokens)])  # of each token, in bytes
    char_starts = np.cumsum([0, *(len(char.encode()) for char in text)])[:-1]
    owners = np.searchsorted(starts, char_starts, side="right") - 1  # the token in which each character begins
    bits = np.zeros(len(tokens))
    np.add.at(bits, owners, reading.bits)
    char_kinds = np.empty(len(text), dtype=np.int8)
    for part in reading.parts:
        char_kinds[part.start : part.stop] = KINDS.index(kind(part))
    kinds = np.full(len(tokens), KINDS.index("wording"), dtype=np.int8)
    is_visible = np.array([not char.isspace() for char in text], dtype=bool)
    # From the last character to the first, so that the first visible one of each token is written last.
    visible = np.flatnonzero(is_visible)[::-1]
    kinds[owners[visible]] = char_kinds[visible]
    return TokenKinds(kinds, bits)


def repeated_pairs(token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return which tokens (N,) complete a pair that has already occurred in the document.

    A model can predict such a token by copying what followed the same token before; heads that do so are called
    induction heads (Olsson et al. 2022).

    Example: of the tokens 5 6 7 5 6, only the last one does, since 5 6 occurs twice.
    """
    seen: set[tuple[int, int]] = set()
    repeated = np.zeros(len(token_ids), dtype=bool)
    ids = [int(token_id) for token_id in token_ids]
    for position, pair in enumerate(pairwise(ids), start=1):
        repeated[position] = pair in seen
        seen.add(pair)
    return repeated
