import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from lm.errors import UserError
from lm.tokenizer import reference
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.pretokenization import END_OF_INPUT, PreTokenizer

# Overlapping special tokens: one is a prefix of another, one a suffix, one is inside another, and two overlap partly.
SPECIAL = ["<|a|>", "<|a|><|b|>", "|><|", "a|>x", "xx"]

# Texts full of what patterns and special tokens depend on: contractions, runs of white space, parts of special tokens.
TRICKY = st.text(st.sampled_from("<|ab>x' \n\r\tsStTlLſd12.é中\u3000\u00a0🙂")) | st.text()
PARTS = st.lists(st.sampled_from([*SPECIAL, "<|", "a", "|>", "x", " ", "\n", "'l", "l"])).map("".join)


def split_streamed(chunks: list[str], pattern: str, special_tokens: list[str]) -> list[str]:
    result = []
    for pre_tokens, follower in PreTokenizer(pattern, special_tokens).stream(chunks):
        result += pre_tokens + ([follower] if follower else [])
    return result


@st.composite
def divided(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> list[str]:
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("special_tokens", [[], SPECIAL], ids=["no special tokens", "special tokens"])
@pytest.mark.parametrize("pattern", [*PATTERNS, r"(?s:\w+|.)"])
@given(chunks=divided(TRICKY | PARTS))
def test_pre_tokens_do_not_depend_on_the_chunks(pattern: str, special_tokens: list[str], chunks: list[str]) -> None:
    text = "".join(chunks)
    expected = reference.pre_tokenize(text, special_tokens, PATTERNS.get(pattern, pattern))
    assert split_streamed(chunks, pattern, special_tokens) == expected
    assert split_streamed(list(text), pattern, special_tokens) == expected


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "llama3", "qwen2", "nanochat"])
def test_a_contraction_may_be_split_between_two_chunks(pattern: str) -> None:
    assert split_streamed(["we'l", "l"], pattern, []) == ["we", "'ll"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_texts_and_long_runs(pattern: str, text: str) -> None:
    run = text[:30_000] + " " * 50_000 + "a" * 50_000 + "\n \n" * 20_000 + text[30_000:60_000]
    assert split_streamed([run], pattern, []) == reference.pre_tokenize(run, [], PATTERNS[pattern])


def test_gpt2_pattern_by_hand() -> None:
    assert split_streamed(["I'll  go  \n to 3 p.m.!"], "gpt2", []) == [
        "I", "'ll", " ", " go", "  \n", " to", " 3", " p", ".", "m", ".!",
    ]  # fmt: skip


def test_gpt4_pattern_by_hand() -> None:
    assert split_streamed(["I'LL pay 12345!\n\n  now"], "gpt4", []) == [
        "I", "'LL", " pay", " ", "123", "45", "!\n\n", " ", " now",
    ]  # fmt: skip


def test_the_leftmost_special_token_wins_then_the_longest() -> None:
    assert split_streamed(["a<|a|><|b|>b"], "gpt2", SPECIAL) == ["a", "<|a|><|b|>", "b"]
    assert split_streamed(["<|a|>xx"], "gpt2", SPECIAL) == ["<|a|>", "xx"]
    assert split_streamed(["<a|>xx"], "gpt2", SPECIAL) == ["<", "a|>x", "x"]


def test_a_document_ends_at_a_special_token() -> None:
    # The white space "  " is one pre-token here; before a letter, its last space would belong to the letter.
    assert split_streamed(["a  <|a|>b"], "gpt2", ["<|a|>"]) == ["a", "  ", "<|a|>", "b"]


@pytest.mark.parametrize("pattern", [r"\d+", r"(a)|(b)", r"x*", r"(?r)[ab]+", r"a\Kb", r"(?<=a)b|$", r"(?i)[a-c]+"])
@given(text=st.text(st.sampled_from("abcxX1é ")))
def test_a_custom_pattern_loses_no_text(pattern: str, text: str) -> None:
    assert "".join(split_streamed([text], pattern, [])) == text


def test_text_between_the_matches_of_a_custom_pattern_becomes_pre_tokens() -> None:
    assert split_streamed(["ab12 c3"], r"\d+", []) == ["ab", "12", " c", "3"]


def test_chunks_are_read_only_when_needed() -> None:
    lines = (f"line {number} of many\n" for number in itertools.count())
    stream = PreTokenizer("gpt2", ["<|endoftext|>"]).stream(lines)
    first = list(itertools.islice(itertools.chain.from_iterable(pre_tokens for pre_tokens, _ in stream), 20))
    assert first[:4] == ["line", " 0", " of", " many"]
    assert next(lines) < "line 8"


def test_empty_input_is_one_empty_document() -> None:
    assert list(PreTokenizer("gpt2").stream([])) == [([], END_OF_INPUT)]
    assert list(PreTokenizer("gpt2").stream([""])) == [([], END_OF_INPUT)]


def test_the_error_for_an_invalid_pattern_gives_the_position() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.pattern: .*got 'a\(b': missing \) at position 3"):
        PreTokenizer("a(b")


@pytest.mark.parametrize(("token", "shown"), [("", "''"), ("<\ud800>", r"'<\\ud800>'")])
def test_a_special_token_that_no_text_can_contain_is_rejected(token: str, shown: str) -> None:
    with pytest.raises(UserError, match=f"special_tokens: expected non-empty texts, got {shown}$"):
        PreTokenizer("gpt2", ["<|a|>", token])


def test_a_pattern_that_cannot_be_compiled_is_reported_once_for_a_long_text(capsys: pytest.CaptureFixture[str]) -> None:
    pattern = r"\w+|\W+"
    assert split_streamed(["short text " * 50_000], pattern, []) and not capsys.readouterr().err
    for _ in range(2):
        split_streamed(["a long text " * 100_000], pattern, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"tokenizer.pattern: {pattern!r} is slow, since it cannot be compiled because of {chr(92) + 'w'!r}"
    split_streamed(["a long text " * 100_000], r"\s?\p{L}+|[^\p{L}]", [])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("pattern", PATTERNS)
def test_memory_holds_a_slice_of_a_text(pattern: str, text: str) -> None:
    lists = [pre_tokens for pre_tokens, _ in PreTokenizer(pattern).stream([text[:200_000]])]
    assert max(sum(map(len, pre_tokens)) for pre_tokens in lists) < 40_000


def test_named_patterns_are_those_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert openai_public.cl100k_base()["pat_str"] == PATTERNS["gpt4"]
    assert openai_public.o200k_base()["pat_str"] == PATTERNS["gpt4o"]
