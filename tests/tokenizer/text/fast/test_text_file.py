from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.text.fast.chunks import PADDING, SpecialTokens, split_source
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.fast.text_file import FileSource
from lm.tokenizer.text.text_file import read_text

pytestmark = pytest.mark.usefixtures("kernels")

LENGTHS = [1, 2, 3, 5, 64, 1000]
NO_SPECIAL = SpecialTokens.from_ids({})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "text.txt"


def pieces_of(path: Path, length: int) -> list[bytes]:
    """Return the pieces of about `length` bytes in which a file is read."""
    pieces = []
    with FileSource.open(path, "reading") as source:
        for begin, end in split_source(source, length, automaton_tables("gpt2"), NO_SPECIAL):
            buffer = np.zeros(source.max_bytes(begin, end) + len(PADDING), np.uint8)
            size = source.read(begin, end, buffer)
            assert size == end - begin
            pieces.append(buffer[:size].tobytes())
    return pieces


@pytest.mark.parametrize("length", LENGTHS)
@given(text=st.text(st.sampled_from("aé中🙂\r\n\0 ")))
def test_pieces_of_any_length_never_split_a_character(path: Path, length: int, text: str) -> None:
    path.write_bytes(text.encode())
    assert "".join(piece.decode() for piece in pieces_of(path, length)) == text


@given(
    parts=st.lists(
        st.text(st.sampled_from("aé中🙂 "), max_size=40).map(str.encode)
        | st.sampled_from(
            [b"\xff", b"\x80", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
        )
    ),
    length=st.sampled_from(LENGTHS),
)
def test_the_text_or_the_error_is_the_same_as_from_the_plain_reader(
    path: Path, parts: list[bytes], length: int
) -> None:
    path.write_bytes(b"".join(parts))
    results = []
    for read in (lambda: b"".join(pieces_of(path, length)).decode(), lambda: "".join(read_text(path, "reading"))):
        try:
            results.append(read())
        except UserError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("length", [4, 64, 1 << 12])
@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"abc\xffdef", "3"),
        (b"\xe4\xb8\xad\xe4\xb8X", "3"),
        (b"ab\xf0\x9f\x99", "2"),
        (b"x" * 30_000 + b"\xc3", "30,000"),
        (b"x " * 15_000 + b"\xc3", "30,000"),
    ],
    ids=["invalid byte", "character cut off by a letter", "character cut off by the end", "long", "in a later piece"],
)
def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(
    path: Path, data: bytes, offset: str, length: int
) -> None:
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"text\.txt: not UTF-8 at byte {offset}; convert the file to UTF-8"):
        pieces_of(path, length)


def test_a_file_that_becomes_shorter_is_reported(path: Path) -> None:
    path.write_bytes(b"one two three")
    with FileSource.open(path, "reading") as source:
        path.write_bytes(b"one two")
        with pytest.raises(UserError, match=r"text\.txt: became shorter while it was read; run this again"):
            source.read(0, 13, np.zeros(13 + len(PADDING), np.uint8))


def test_an_empty_file_has_no_pieces(path: Path) -> None:
    path.write_bytes(b"")
    assert pieces_of(path, 100) == []


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read \(No such file"):
        pieces_of(tmp_path / "none.txt", 100)
