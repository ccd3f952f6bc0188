import pytest

from lm.corpus.content import is_html, is_lfs_pointer

# As in the specification of Git LFS, https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.mark.parametrize(
    "head",
    [
        b"<!DOCTYPE html>\n<html>",
        b"\xef\xbb\xbf\r\n <!doctype  HTML PUBLIC '-//W3C//DTD HTML 4.01//EN'>",
        b"<html lang=en>",
        b"<HTML>",
        b"<!-- saved\nfrom --> <!-- twice --> <html>",
        b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
    ],
)
def test_pages(head: bytes) -> None:
    assert is_html(head)


@pytest.mark.parametrize(
    "head", [b"", b"html", b"Once <html>", b"<htmlx>", b"<|endoftext|><html>", b"<p>text", b"<?xml ?><svg>", POINTER]
)
def test_text_that_is_no_page(head: bytes) -> None:
    assert not is_html(head)


def test_a_pointer_is_short() -> None:
    assert is_lfs_pointer(POINTER)
    assert is_lfs_pointer(b"\n" + POINTER) and is_lfs_pointer(b"\xef\xbb\xbf\r\n" + POINTER.replace(b"\n", b"\r\n"))
    assert not is_lfs_pointer(POINTER[1:]) and not is_lfs_pointer(b"A " + POINTER)
    assert not is_lfs_pointer(POINTER + bytes(1000))  # a text about Git LFS
