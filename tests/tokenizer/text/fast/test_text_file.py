import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.text.fast.text_file import read_blocks
from lm.tokenizer.text.text_file import read_text

BLOCKS = [4, 5, 6, 7, 63, 64, 65, 1000]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "text.txt"


@pytest.mark.parametrize("block_bytes", BLOCKS)
@given(text=st.text(st.sampled_from("aé中🙂\r\n\0")))
def test_blocks_of_any_size_never_split_a_character(path: Path, block_bytes: int, text: str) -> None:
    path.write_bytes(text.encode())
    blocks = list(read_blocks(path, "reading", block_bytes))
    assert "".join(block.decode() for block in blocks) == text
    assert all(len(block) <= block_bytes for block in blocks)


@given(
    parts=st.lists(
        st.text(st.sampled_from("aé中🙂"), max_size=40).map(str.encode)
        | st.sampled_from(
            [b"\xff", b"\x80", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
        )
    ),
    block_bytes=st.sampled_from(BLOCKS),
)
def test_the_text_or_the_error_is_the_same_as_from_the_plain_reader(
    path: Path, parts: list[bytes], block_bytes: int
) -> None:
    path.write_bytes(b"".join(parts))
    results = []
    for read in (
        lambda: b"".join(read_blocks(path, "reading", block_bytes)).decode(),
        lambda: "".join(read_text(path, "reading", block_bytes)),
    ):
        try:
            results.append(read())
        except UserError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("block_bytes", [4, 64, 1 << 12])
@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"abc\xffdef", "3"),
        (b"\xe4\xb8\xad\xe4\xb8X", "3"),
        (b"ab\xf0\x9f\x99", "2"),
        (b"x" * 30_000 + b"\xc3", "30,000"),
    ],
    ids=["invalid byte", "character cut off by a letter", "character cut off by the end", "in a later block"],
)
def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(
    path: Path, data: bytes, offset: str, block_bytes: int
) -> None:
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"text\.txt: not UTF-8 at byte {offset}; convert the file to UTF-8"):
        list(read_blocks(path, "reading", block_bytes))


def test_a_block_does_not_change_when_the_next_one_is_read(path: Path) -> None:
    path.write_bytes(os.urandom(500).hex().encode())
    blocks = read_blocks(path, "reading", 100)
    first = next(blocks)
    copy = bytearray(first)
    next(blocks)
    assert first == copy


def test_an_empty_file_has_no_blocks(path: Path) -> None:
    path.write_bytes(b"")
    assert b"".join(read_blocks(path, "reading")) == b""


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read \(No such file"):
        list(read_blocks(tmp_path / "none.txt", "reading"))
