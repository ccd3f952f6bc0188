"""Bytes -> text -> documents, one document in memory at a time.

The three steps are generators over chunks of any size, so a file of any length is read in constant memory:

    >>> list(documents(split(decode([b"One.\\n<|endo", b"ftext|>\\nTwo."], "a.txt"), "<|endoftext|>", "a.txt")))
    ['One.', 'Two.']
"""

import codecs
from collections.abc import Iterable, Iterator

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError

# A document is held whole, and a few bytes of gzip can stand for gigabytes without a separator.
MAX_DOCUMENT_CHARACTERS = 1 << 28


def decode(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    """The chunks as UTF-8 text, without a byte order mark at its head; newlines stay as they are.

    Raises:
        UserError: a byte is not UTF-8; the message gives its offset in the file `name`, counted from 0.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    decoded = 0  # bytes of the chunks before this one

    def text(chunk: bytes, final: bool) -> str:
        try:
            return decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            # error.object ends where the chunk ends, and begins earlier if the last chunk cut a character.
            offset = decoded + len(chunk) - len(error.object) + error.start
            raise UserError(
                f"{name}: not UTF-8 text at byte {offset} (0x{error.object[error.start]:02x}); convert the file to "
                "UTF-8, for example with iconv"
            ) from error

    for chunk in chunks:
        yield text(chunk, False)
        decoded += len(chunk)
    yield text(b"", True)


def split(chunks: Iterable[str], separator: str, name: str) -> Iterator[str]:
    """The pieces of `"".join(chunks).split(separator)`, one at a time, in time linear in the text.

    Raises:
        UserError: no separator within MAX_DOCUMENT_CHARACTERS characters of the file `name`.
    """
    unfinished: list[str] = []
    length = 0
    tail = ""  # the last characters of `unfinished`: a separator may have begun there
    for chunk in chunks:
        unfinished.append(chunk)
        length += len(chunk)
        tail += chunk
        if separator in tail:
            *pieces, tail = "".join(unfinished).split(separator)
            yield from pieces
            unfinished, length = [tail], len(tail)
        if length > MAX_DOCUMENT_CHARACTERS:
            raise UserError(
                f"{name}: more than {MAX_DOCUMENT_CHARACTERS:,} characters without {separator!r}; set data.separator "
                "to what parts the documents of this file"
            )
        tail = tail[max(0, len(tail) - len(separator) + 1) :]
    yield "".join(unfinished)


def without_marker(text: str) -> Iterator[str]:
    """The documents in `text`: it is split where it contains END_OF_TEXT itself, and blank parts are dropped.

    The marker ends every document in the files of the stage `download`, so no document can contain it.
    """
    return (part for part in text.split(END_OF_TEXT) if part and not part.isspace())


def documents(pieces: Iterable[str]) -> Iterator[str]:
    """The documents in the pieces of a text file, without the white space around them, which belongs to its layout."""
    return (document.strip() for piece in pieces for document in without_marker(piece))
