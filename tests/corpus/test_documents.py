import contextlib
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus import documents as module
from lm.corpus.documents import decode, documents, normalize, split, split_at_end_of_text
from lm.errors import UserError


def cut(whole, points):
    """Cut `whole` at the points, which may be any integers."""
    ends = sorted(point % (len(whole) + 1) for point in points)
    return [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]


@given(st.text(alphabet="ab|\n"), st.text(alphabet="ab|", min_size=1, max_size=4), st.lists(st.integers(0, 99)))
def test_split_equals_str_split_however_the_text_is_cut(text, separator, points):
    assert list(split(cut(text, points), separator, "a.txt")) == text.split(separator)


@given(st.lists(st.text(alphabet="a<|>\n", max_size=9)), st.integers(1, 30))
def test_end_of_text_may_span_several_chunks(pieces, size):
    text = "<|endoftext|>".join(pieces)
    chunks = (text[start : start + size] for start in range(0, len(text), size))
    assert list(split(chunks, "<|endoftext|>", "a.txt")) == text.split("<|endoftext|>")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.lists(st.integers(0, 99)))
def test_decode_equals_bytes_decode_however_the_bytes_are_cut(text, points):
    assert "".join(decode(cut(text.encode(), points), "a.txt")) == normalize(text)


@given(st.text(alphabet="a\r\n\ufeff"), st.lists(st.integers(0, 99)))
def test_line_ends_and_marks_however_the_bytes_are_cut(text, points):
    without_marks = "".join(character for character in text if character != "\ufeff")
    expected = re.sub(r"\r\n", "\n", without_marks)
    assert "".join(decode(cut(text.encode(), points), "a.txt")) == normalize(text) == expected


def test_the_line_ends_of_windows_do_not_hide_the_separator():
    lines = b"One.\r\nTwo.\r\n\r\nThree.\r\n"
    assert list(documents(split(decode([lines], "a.txt"), "\n\n", "a.txt"))) == ["One.\nTwo.", "Three."]


def test_byte_order_marks_of_concatenated_files():
    files = [f"{mark}{text}".encode() for mark, text in [("\ufeff", "One.<|endoftext|>"), ("\ufeff", "Two.")]]
    assert list(documents(split(decode(files, "a.txt"), "<|endoftext|>", "a.txt"))) == ["One.", "Two."]
    assert list(split_at_end_of_text(normalize("\ufeffOne.\r\n<|endoftext|>Two."))) == ["One.\n", "Two."]


@given(st.binary(), st.lists(st.integers(0, 99)), st.booleans())
def test_decode_reports_the_same_byte_as_bytes_decode(data, points, has_mark):
    data = b"\xef\xbb\xbf" * has_mark + data
    before_nul, nul, _ = data.partition(b"\0")
    try:
        before_nul.decode()
    except UnicodeDecodeError as error:
        says = rf"^a\.txt: not UTF-8 text at byte {error.start} \(0x{data[error.start]:02x}\)"
        with pytest.raises(UserError, match=says):
            list(decode(cut(data, points), "a.txt"))
    else:
        with (
            pytest.raises(UserError, match=rf"^a\.txt: a NUL character at byte {len(before_nul)}, as in UTF-16 text")
            if nul
            else contextlib.nullcontext()
        ):
            list(decode(cut(data, points), "a.txt"))


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        ("Once.".encode("utf-16-le"), 1),
        ("Once.".encode("utf-16-be"), 0),
        (bytes(10), 0),
        (b"PK\x03\x04\x14\0\0\0\x08\0", 5),
        (b"Once.\n" * 1000 + b"\0", 6000),
    ],
)
def test_text_that_is_no_text(data, offset):
    with pytest.raises(UserError) as caught:
        list(decode([data], "a.txt"))
    assert str(caught.value) == (
        f"a.txt: a NUL character at byte {offset}, as in UTF-16 text or a binary file; convert the file to UTF-8 text, "
        "for example with iconv"
    )


def test_white_space_around_documents_is_dropped_and_newlines_inside_are_kept():
    text = "\n One.\r\n\r\nTwo \n<|endoftext|>\n \n<|endoftext|>\nThree.<|endoftext|>\n"
    assert list(documents(split([text], "<|endoftext|>", "a.txt"))) == ["One.\r\n\r\nTwo", "Three."]


def test_a_document_is_split_at_the_marker_it_contains():
    assert list(split_at_end_of_text("a <|endoftext|><|endoftext|> \n<|endoftext|> b\n")) == ["a ", " b\n"]


def test_a_document_that_never_ends_is_rejected(monkeypatch):
    monkeypatch.setattr(module, "MAX_DOCUMENT_CHARACTERS", 1000)
    endless = iter(lambda: "x" * 100, "")
    with pytest.raises(UserError, match=r"^bomb\.txt\.gz: more than 1,000 characters without '\|'; set data\."):
        list(split(endless, "|", "bomb.txt.gz"))


def test_memory_does_not_grow_with_the_text():
    chunks = ("x" * 900 + "<|endoftext|>" + "y" * 100 for _ in range(10_000))
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in split(chunks, "<|endoftext|>", "a.txt")) == 10_000_000
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
