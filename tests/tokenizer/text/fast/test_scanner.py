import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer import reference
from lm.tokenizer.text.fast.chunks import PADDING
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.patterns import PATTERNS

Scanner = Callable[..., list[int]]
Reference = Callable[[str], list[int]]

# All code points of the first planes; beyond them almost none are assigned, so every 61st is enough.
CHARACTERS = [chr(code) for code in [*range(0xD800), *range(0xE000, 0x34000), *range(0x34000, 0x110000, 61)]]
WHITE_SPACE = regex.findall(r"\s", "".join(CHARACTERS))
# Characters of each class, of one to four bytes, and those that contractions consist of.
OF_EACH_CLASS = "aé中𝐀1²٣𝟘 \n\r\t\x85\u00a0\u3000\u2028!\0¿—🙂'sdmtrevlLſ"
# Offsets before and after the ends of two groups of 16 characters that are looked up at once.
AROUND_A_BLOCK_END = range(62, 84)
# A pattern with lazy repetition, other look-aheads, and words.
CUSTOM = r"(?i:the|an?)(?!\p{L})|[A-Z][a-z]{2,4}?|\p{L}{1,9}?(?=['\s\d])|\s+(?![^\s\p{N}])|\s|\S"


@pytest.fixture(scope="module", params=[*PATTERNS, CUSTOM])
def pattern(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def starts_by_reference(pattern: str) -> Reference:
    """Return a function that returns where the pre-tokens of a text start, and the end, found by `regex`."""
    expression = PATTERNS.get(pattern, pattern)

    def run(text: str) -> list[int]:
        lengths = [len(pre_token.encode()) for pre_token in reference.pre_tokenize(text, pattern=expression)]
        return [0, *itertools.accumulate(lengths)]

    return run


@pytest.fixture(scope="module")
def scan(kernels: SimpleNamespace, pattern: str) -> Scanner:
    """Return a function that returns where the pre-tokens of data[begin:end] start, and the end."""

    def run(data: bytes, begin: int = 0, end: int | None = None, block_size: int | None = None) -> list[int]:
        end = len(data) if end is None else end
        block, starts = np.empty((2, end - begin + 32), np.uint32)
        count = kernels.find_starts(
            np.frombuffer(data + PADDING, np.uint8), begin, end, block_size or end - begin,
            automaton_tables(pattern), block, starts,
        )  # fmt: skip
        return starts[: count + 1].tolist()

    return run


@pytest.mark.parametrize("neighbor", ["a", "1", " ", "\n", "!", "'"])
def test_every_code_point_between_characters_of_each_class(
    scan: Scanner, starts_by_reference: Reference, neighbor: str
) -> None:
    text = neighbor + "".join(character + neighbor for character in CHARACTERS)
    assert scan(text.encode()) == starts_by_reference(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "context", ["'{}", "a{}'s", " {}{} ", "x  {}a", "\n{}\n", "1{}1", "!{}/", "A{}a", "a{}A", "{}LL{}"]
)
def test_every_code_point_in_every_position_of_short_strings(
    scan: Scanner, starts_by_reference: Reference, context: str
) -> None:
    text = "\n".join(context.replace("{}", character) for character in CHARACTERS)
    assert scan(text.encode()) == starts_by_reference(text)


@pytest.mark.parametrize("shift", range(4))
def test_every_three_byte_character_at_every_offset_in_a_block(
    scan: Scanner, starts_by_reference: Reference, shift: int
) -> None:
    # With the space it takes 4 bytes, so without the shift it would never cross the end of a block.
    text = "x" * shift + "".join(character + " " for character in CHARACTERS[0x800:0xF800])
    assert scan(text.encode()) == starts_by_reference(text)


def test_every_code_point_after_the_one_before(scan: Scanner, starts_by_reference: Reference) -> None:
    text = "".join(CHARACTERS)
    assert scan(text.encode()) == starts_by_reference(text)


def test_every_code_point_alone(scan: Scanner, starts_by_reference: Reference) -> None:
    # One character is one pre-token. Beyond the first plane, classes come in long runs.
    for character in CHARACTERS[:0x10000] + CHARACTERS[0x10000::61]:
        data = character.encode()
        assert scan(data) == [0, len(data)]


@settings(max_examples=250)
@given(
    text=st.text() | st.text(st.sampled_from(OF_EACH_CLASS), max_size=200),
    shift=st.integers(0, 70),
)
def test_any_text(scan: Scanner, starts_by_reference: Reference, text: str, shift: int) -> None:
    for start in ("x" * shift, " " * shift, "é" * shift):
        assert scan((start + text).encode()) == starts_by_reference(start + text)


@settings(max_examples=250)
@given(
    text=st.text(st.sampled_from(OF_EACH_CLASS), max_size=150),
    before=st.binary(max_size=80),
    after=st.sampled_from([b"", b"ll", b"s ", b"\x80\xbf", b" a", b"\xe3\x80\x80"]) | st.binary(max_size=80),
)
def test_bytes_before_the_beginning_and_after_the_end_do_not_affect_the_result(
    scan: Scanner, starts_by_reference: Reference, text: str, before: bytes, after: bytes
) -> None:
    data = text.encode()
    found = scan(before + data + after, len(before), len(before) + len(data))
    assert [position - len(before) for position in found] == starts_by_reference(text)


def test_contractions_in_every_case_at_every_offset(scan: Scanner, starts_by_reference: Reference) -> None:
    letters = ["s", "t", "m", "d", "re", "ve", "ll"]
    cases = {"".join(case) for text in letters for case in itertools.product(*zip(text.lower(), text.upper()))}
    for ending in [*sorted(cases), "", "l", "r", "v", "e", "ſ", "lé", "le", "rv"]:
        for before in ["", "a", "1", "!", " ", "é", "\u3000"]:
            for after, offset in itertools.product(["", "a", "'", "'s", " ", "中"], AROUND_A_BLOCK_END):
                text = "x" * offset + before + "'" + ending + after
                assert scan(text.encode()) == starts_by_reference(text), text


@pytest.mark.parametrize(("text", "after"), [("x'", "s"), ("x'", "ll"), ("x'l", "l"), ("x'r", "e"), ("'v", "e ")])
def test_a_contraction_does_not_extend_past_the_end(
    scan: Scanner, starts_by_reference: Reference, text: str, after: str
) -> None:
    for offset in AROUND_A_BLOCK_END:
        data = ("x" * offset + text).encode()
        assert scan(data + after.encode(), 0, len(data)) == starts_by_reference(data.decode())


def test_every_white_space_at_the_end_of_a_block(scan: Scanner, starts_by_reference: Reference) -> None:
    for space, offset, count in itertools.product(WHITE_SPACE, AROUND_A_BLOCK_END, (1, 2, 3)):
        for after in ["", "a", "1", "!", "'s", " b", "\u2003é"]:
            text = "x" * offset + space * count + after
            assert scan(text.encode()) == starts_by_reference(text), (text, offset)


@pytest.mark.parametrize(
    "unit", [" ", "\n", "a", "1", "!", "'", "é", "中", "🙂", "\u3000", "\r\n", "'s", " a", "a ", "\0", " \u00a0"]
)
def test_long_runs(scan: Scanner, starts_by_reference: Reference, unit: str) -> None:
    for text in (unit * 100_000, "x" + unit * 100_000 + "y", " " + unit * 99_999 + " 7"):
        assert scan(text.encode()) == starts_by_reference(text)


@pytest.mark.parametrize("pattern", ["gpt2"], indirect=True)
def test_by_hand(scan: Scanner) -> None:
    assert scan(b"I 've  it's") == [0, 1, 3, 5, 6, 9, 11]
    assert scan(b"a\r\nb\0c") == [0, 1, 2, 3, 4, 5, 6]
    assert scan("٣4५ x".encode()) == [0, 6, 8]
    assert scan(b"") == [0]


def test_a_generated_text(scan: Scanner, starts_by_reference: Reference, text: str) -> None:
    assert scan(text.encode()) == starts_by_reference(text)


@pytest.mark.slow
def test_complete_real_texts(scan: Scanner, starts_by_reference: Reference, shared_data: Path) -> None:
    for path in sorted(shared_data.glob("*.txt")):
        with path.open(encoding="utf-8", newline="") as file:
            while text := file.read(1 << 20):
                assert scan(text.encode()) == starts_by_reference(text), path.name


def test_real_texts(scan: Scanner, starts_by_reference: Reference, shared_data: Path) -> None:
    for name in ("multilingual.txt", "code_python.txt", "chinese_sanguo.txt"):
        text = (shared_data / name).read_bytes()[:1_000_000].decode(errors="ignore")
        assert scan(text.encode()) == starts_by_reference(text)


@pytest.mark.parametrize("block_size", [1, 2, 15, 16, 17, 40, 100])
@settings(max_examples=60)
@given(text=st.text(st.sampled_from(OF_EACH_CLASS) | st.sampled_from("ab 's"), max_size=200))
def test_blocks_of_any_size(scan: Scanner, starts_by_reference: Reference, block_size: int, text: str) -> None:
    assert scan(text.encode(), block_size=block_size) == starts_by_reference(text)
