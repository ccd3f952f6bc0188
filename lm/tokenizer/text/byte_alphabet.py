"""GPT-2's byte alphabet: every byte as a printable character, so that tokens can be written to text files.

    >>> to_text("café au".encode())
    'cafÃ©Ġau'

Bytes that are printable in Latin-1 are written as that character; the other 68 use the characters from U+0100 on.
GPT-2 also numbers its first 256 ids in the order of this alphabet: `!` has id 0.
"""

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTES_IN_ORDER = _PRINTABLE + _OTHERS

_CHARACTERS = [chr(byte) for byte in _PRINTABLE] + [chr(0x100 + index) for index in range(len(_OTHERS))]
_BYTE_OF = dict(zip(_CHARACTERS, BYTES_IN_ORDER))
_CHARACTER_OF = dict(zip(BYTES_IN_ORDER, _CHARACTERS))


def to_text(token: bytes) -> str:
    """Return `token` in the byte alphabet, one character per byte."""
    return "".join(_CHARACTER_OF[byte] for byte in token)


def from_text(text: str) -> bytes:
    """Return the bytes that `to_text` wrote as `text`.

    Raises:
        KeyError: A character is not in the alphabet; the character is the error's argument.
    """
    return bytes(_BYTE_OF[character] for character in text)
