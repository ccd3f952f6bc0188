"""Convert bytes to text and text to documents, holding one document in memory at a time.

Each of the three steps is a generator that accepts chunks of any size, so a file of any length is read in constant
memory. In every text, CRLF line ends become LF and byte order marks are dropped, so that neither depends on the system
that a file comes from.

    >>> list(documents(split(decode([b"One.\\n<|endo", b"ftext|>\\nTwo."], "a.txt"), "<|endoftext|>", "a.txt")))
    ['One.', 'Two.']
"""

import codecs
from collections.abc import Iterable, Iterator

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError, quote

# A document is held in memory as a whole, and a tiny gzip file can expand to gigabytes that contain no separator.
MAX_DOCUMENT_CHARACTERS = 1 << 28


def decode(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode chunks of bytes as UTF-8, and normalize the text.

    Raises:
        UserError: If a byte is not valid UTF-8, or a NUL character, which is valid UTF-8 but is not found in text. The
            message gives the offset of the byte in the file `name`, counted from 0.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoded = 0  # bytes in the chunks before the current one
    held = ""  # a carriage return at the end of the previous chunk, whose newline may be in the current one

    def decode_chunk(chunk: bytes, final: bool) -> str:
        try:
            return decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            # error.object ends with the current chunk. It starts with the bytes of a character that the previous chunk
            # cut in two, if there are any.
            offset = decoded + len(chunk) - len(error.object) + error.start
            raise UserError(
                f"{name}: not UTF-8 text at byte {offset} (0x{error.object[error.start]:02x}); convert the file to "
                "UTF-8, for example with iconv"
            ) from error

    for chunk in chunks:
        before_nul, nul, _ = chunk.partition(b"\0")
        text = normalize(held + decode_chunk(before_nul, final=bool(nul)))
        if nul:
            raise UserError(
                f"{name}: a NUL character at byte {decoded + len(before_nul)}, as in UTF-16 text or a binary file; "
                "convert the file to UTF-8 text, for example with iconv"
            )
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix(held)
        decoded += len(chunk)
    yield held + decode_chunk(b"", final=True)


def normalize(text: str) -> str:
    """Convert CRLF line ends to LF, and drop byte order marks.

    A mark that is not at the beginning of a text comes from files that were concatenated. Unicode has deprecated the
    character's other use, as a space without width.
    """
    if "\r" in text or "\ufeff" in text:  # to find one character is much faster than to find two
        return text.replace("\ufeff", "").replace("\r\n", "\n")
    return text


def split(chunks: Iterable[str], separator: str, name: str) -> Iterator[str]:
    """Yield the items of `"".join(chunks).split(separator)` one at a time, in time linear in the length of the text.

    Raises:
        UserError: If the file `name` has more than MAX_DOCUMENT_CHARACTERS characters without a separator.
    """
    unfinished: list[str] = []
    length = 0
    tail = ""  # the last characters of `unfinished`, where a separator may have started
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
                f"{name}: more than {MAX_DOCUMENT_CHARACTERS:,} characters without {quote(separator)}; set "
                "data.separator to the text that separates the documents of this file"
            )
        tail = tail[max(0, len(tail) - len(separator) + 1) :]
    yield "".join(unfinished)


def split_at_end_of_text(text: str) -> Iterator[str]:
    """Split `text` at every END_OF_TEXT and drop the parts that are empty or only white space.

    The `download` stage writes this marker after every document, so a document must not contain it.
    """
    return (part for part in text.split(END_OF_TEXT) if part and not part.isspace())


def documents(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the documents in the pieces of a text file, without the white space around them."""
    return (document.strip() for piece in pieces for document in split_at_end_of_text(piece))
