from pathlib import Path

import pytest

from lm.errors import UserError
from lm.tokenizer.text.text_file import read_text


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 1000])
def test_any_chunk_size_gives_the_text_with_its_line_endings(tmp_path: Path, chunk_bytes: int) -> None:
    text = "aé中🙂\r\n\rb\n"
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert "".join(read_text(path, "reading", chunk_bytes)) == text


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("data", "offset"),
    [(b"abc\xffdef", 3), (b"\xe4\xb8\xad\xe4\xb8X", 3), (b"ab\xf0\x9f\x99", 2)],
    ids=["invalid byte", "character cut off by a letter", "character cut off by the end"],
)
def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(
    tmp_path: Path, data: bytes, offset: int, chunk_bytes: int
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"text\.txt: not UTF-8 at byte {offset};"):
        list(read_text(path, "reading", chunk_bytes))


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read \(No such file"):
        list(read_text(tmp_path / "none.txt", "reading"))
