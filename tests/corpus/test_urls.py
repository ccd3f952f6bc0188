import pytest

from lm.corpus.urls import file_name, is_url, redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a.txt", "https://host/a.txt"),
        ("https://ann:secret@host/a.txt", "https://***@host/a.txt"),
        ("HTTPS://ann:sec@ret@host:80/a.txt", "HTTPS://***@host:80/a.txt"),
        ("http://ann:sec/ret@host/a.txt", "http://***@host/a.txt"),
        ("http://token@host/a.txt", "http://***@host/a.txt"),
        ("http://host/package@1.0/a.txt", "http://host/package@1.0/a.txt"),
        ("http://host:80/package@1.0/a.txt", "http://host:80/package@1.0/a.txt"),
        ("http://[::1]:80/package@1.0/a.txt", "http://[::1]:80/package@1.0/a.txt"),
        ("http://ann:secret@host/package@1.0/a.txt", "http://***@host/package@1.0/a.txt"),
        ("https://host/a.txt?version=2&token=abc#x", "https://host/a.txt?version=2&token=***#x"),
        ("https://host/a.txt?X-Amz-Signature=ab%2Fc&x=1", "https://host/a.txt?X-Amz-Signature=***&x=1"),
        ("http://host/a.txt?token=abc: cannot be reached", "http://host/a.txt?token=***: cannot be reached"),
        ("http://host/a.txt?token=a:b::&x=1", "http://host/a.txt?token=***&x=1"),
        ("http://host/a.txt?key=a:b:", "http://host/a.txt?key=***:"),
        ("cannot reach http://a:b@c/d and http://e:f@g/h", "cannot reach http://***@c/d and http://***@g/h"),
    ],
)
def test_passwords_and_tokens_are_not_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://host/a%20b.txt?x=1", "a_b.txt"),
        ("http://host/folder/", ""),
        ("http://ann:secret@host", ""),
        ("http://host/" + "a" * 5000 + ".txt", "a" * 76 + ".txt"),
        ("http://host/..%2Fa\\b.txt#c/d", "a_b.txt"),
    ],
)
def test_the_file_name_of_a_url(url: str, name: str) -> None:
    assert file_name(url) == name


def test_what_is_a_url() -> None:
    assert is_url("http://host/a") and is_url("HTTPS://HOST/A")
    assert not any(map(is_url, ("http:/host/a", "ftp://host/a", "a/http://b", "")))
