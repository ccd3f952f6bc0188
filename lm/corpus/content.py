"""Recognize a file whose content is not what its name says, by its first bytes."""

import re

from lm.errors import UserError

HEAD_BYTES = 1024  # a Git LFS pointer is shorter

_LFS_POINTER = re.compile(rb"(\xef\xbb\xbf)?\s*version https://git-lfs\.github\.com/spec/")
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.I | re.S)


def is_html(head: bytes) -> bool:
    """Whether a file that starts with `head` is an HTML page."""
    return _HTML.match(head) is not None


def is_lfs_pointer(head: bytes) -> bool:
    """Whether `head` is the text that git stores, and checks out without Git LFS, in place of a large file.

    A byte order mark and white space may precede it, as after the file was saved in an editor.
    """
    return len(head) < HEAD_BYTES and _LFS_POINTER.match(head) is not None


def is_gzip(head: bytes) -> bool:
    """Whether a file that starts with `head` is compressed with gzip."""
    return head.startswith(b"\x1f\x8b")


def html_error(url: str) -> UserError:
    """Return the UserError for a page in place of a file, such as a login or a view of the file with line numbers."""
    return UserError(
        f"{url}: an HTML page instead of the file; check that the URL needs no login and leads to the file itself "
        "(/resolve/ or /raw/ instead of /blob/), or download the file and list its path"
    )
