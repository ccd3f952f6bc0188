import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.generation import text
from lm.generation.text import TextStream


def fed(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(stop)
    got = [stream.feed(piece) for piece in pieces]
    return [*got, stream.finish()], stream.stopped


def cut_at_first_stop(whole: str, stop: list[str]) -> str:
    """The definition: the text up to the first stop string to be complete, or the longest of several such."""
    for end in range(len(whole) + 1):
        complete = [text for text in stop if text and whole[:end].endswith(text)]
        if complete:
            return whole[: end - max(map(len, complete))]
    return whole


def test_the_example_in_the_docstring_is_true():
    assert doctest.testmod(text).failed == 0


@given(data=st.data(), whole=st.text("abé😀", max_size=12), stop=st.lists(st.text("abé", max_size=4), max_size=3))
def test_the_text_does_not_depend_on_how_it_is_divided(data, whole, stop):
    encoded = whole.encode()
    cuts = data.draw(st.lists(st.integers(0, len(encoded))))
    borders = [0, *sorted(cuts), len(encoded)]
    pieces, stopped = fed([encoded[a:b] for a, b in itertools.pairwise(borders)], stop)
    expected = cut_at_first_stop(whole, stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != whole)
    assert "\ufffd" not in "".join(pieces)


@given(pieces=st.lists(st.binary(max_size=3)))
def test_invalid_utf8_is_decoded_as_if_it_came_at_once(pieces):
    assert "".join(fed(pieces, [])[0]) == b"".join(pieces).decode(errors="replace")


def test_only_the_possible_beginning_of_a_stop_string_is_held_back():
    assert fed([b"a", b"\n", b"b", b"\n", b"\n", b"c"], ["\n\n"]) == (["a", "", "\nb", "", "", "", ""], True)
    assert fed([b"a\n"], ["\n\n"]) == (["a", "\n"], False)


@pytest.mark.parametrize("pieces", [[b"xabc"], [b"x", b"a", b"b", b"c"]])
def test_the_first_complete_stop_string_counts(pieces):
    assert "".join(fed(pieces, ["abc", "b"])[0]) == "xa"
    assert "".join(fed(pieces, ["c", "abc"])[0]) == "x"
