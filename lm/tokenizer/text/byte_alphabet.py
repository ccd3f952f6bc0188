"""GPT-2's alphabet: every byte as a printable character, so that tokens can stand in text files.

    >>> to_text("café au".encode())
    'cafÃ©Ġau'

Bytes that are printable in Latin-1 stand for themselves; the other 68 take the characters from U+0100 on. The order of
the alphabet is also the order of GPT-2's first 256 ids: `!` is 0.
"""

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTES_IN_ORDER = _PRINTABLE + _OTHERS

_CHARACTERS = [chr(byte) for byte in _PRINTABLE] + [chr(0x100 + index) for index in range(len(_OTHERS))]
_BYTE_OF = dict(zip(_CHARACTERS, BYTES_IN_ORDER))
_CHARACTER_OF = dict(zip(BYTES_IN_ORDER, _CHARACTERS))


def to_text(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def from_text(text: str) -> bytes:
    """The inverse of `to_text`; a KeyError holds a character that is not in the alphabet."""
    return bytes(_BYTE_OF[character] for character in text)
