"""What a URL says about a file, and how messages and records show it."""

import re
from urllib.parse import unquote

# A password, with the user name before it. The second form is a password with a slash in it, which is not a valid URL.
_LOGIN = re.compile(r"(?<=://)(?:[^/?#\s]*@|[^/?#\s:\[]*:(?!\d*(?:[/?#\s]|$))\S*@)")
_SECRET = re.compile(
    r"([?&;][^=&;#\s]*(?:token|key|secret|sig|passw|pwd|auth|credential)[^=&;#\s]*=)"
    r"(?:[^&;#\s:]|:(?!\s|$))+",  # in a message, a colon may follow the URL
    re.I,
)


def is_url(name: str) -> bool:
    """Whether a name is an http(s) URL. The scheme may be in capital letters (RFC 3986, section 3.1)."""
    return re.match(r"https?://", name, re.IGNORECASE) is not None


def file_name(url: str) -> str:
    """Return the last segment of a URL as a portable file name, for example a_b.txt for http://host/a%20b.txt?x=1.

    Characters that some file systems do not allow become `_`.
    """
    path = re.sub(r"^[^/]*//[^/?#]*", "", re.split(r"[?#]", url)[0])
    return re.sub(r"[^A-Za-z0-9._-]", "_", unquote(path).rpartition("/")[2])[-80:]


def redact(text: str) -> str:
    """Replace the passwords and access tokens of the URLs in a text by ***.

    >>> redact("https://ann:secret@host/a.txt?version=2&token=abc")
    'https://***@host/a.txt?version=2&token=***'
    """
    return _SECRET.sub(r"\1***", _LOGIN.sub("***@", text))
