"""GPT-2's byte alphabet: every byte as a printable character, so that tokens can be written to text files.

    >>> to_text("café au".encode())
    'cafÃ©Ġau'

Bytes that are printable in Latin-1 are written as that character; the other 68 use the characters from U+0100 on.
GPT-2 also numbers its first 256 ids in the order of this alphabet: `!` has id 0.
"""

import codecs

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTES_IN_ORDER = _PRINTABLE + _OTHERS

_OTHER_CHARACTERS = {byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)}

# The alphabet is a character set of eight bits, such as Latin-1, for which Python has fast code.
_CHARACTERS = "".join(_OTHER_CHARACTERS.get(byte, chr(byte)) for byte in range(256))
_BYTES = codecs.charmap_build(_CHARACTERS)


def to_text(token: bytes) -> str:
    """Return `token` in the byte alphabet, one character per byte."""
    return codecs.charmap_decode(token, "strict", _CHARACTERS)[0]


def from_text(text: str) -> bytes:
    """Return the bytes that `to_text` wrote as `text`.

    Raises:
        KeyError: A character is not in the alphabet; the character is the error's argument.
    """
    try:
        return codecs.charmap_encode(text, "strict", _BYTES)[0]
    except UnicodeEncodeError as error:
        raise KeyError(text[error.start]) from error
