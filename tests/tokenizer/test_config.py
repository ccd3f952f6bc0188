import pytest

from lm.tokenizer import reference
from lm.tokenizer.config import TokenizerConfig

END = "<|endoftext|>"


def config(**changes: object) -> TokenizerConfig:
    return TokenizerConfig(
        **{"vocab_size": 1000, "pattern": "gpt2", "special_tokens": [END], "train_bytes": 0} | changes
    )


@pytest.mark.parametrize(
    "pattern",
    ["gpt2", "gpt4", r"\w+|\s+", ".", " ", ",", r"[a-z]+", r"\d", r"(?r)\w+", r"'s| ?\p{L}+", r"a\Kb"],
)
def test_patterns_that_are_accepted(pattern: str) -> None:
    assert config(pattern=pattern).pattern == pattern


@pytest.mark.parametrize("tokens", [[END, "<|end|>"], [END, "<|pad|>", "\n\n", "é"], [END, "<|", "|>x", "endoftext"]])
def test_special_tokens_that_are_accepted(tokens: list[str]) -> None:
    assert config(special_tokens=tokens).special_tokens == tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "GPT2"}, "got 'GPT2', which matches only this text; did you mean 'gpt2'\\?$"),
        ({"pattern": "gpt3"}, "got 'gpt3', which matches only this text; did you mean 'gpt[24]'\\?$"),
        ({"pattern": "gpt-4"}, "did you mean 'gpt4'\\?$"),
        ({"pattern": "cl100k_base"}, "got 'cl100k_base', which matches only this text$"),
        ({"pattern": ""}, "pattern: expected 'gpt2', 'gpt4', .*'nanochat' or a regular expression, got ''$"),
        ({"pattern": "a(b"}, "got 'a\\(b': missing \\) at position 3$"),
        ({"pattern": "(" * 5000 + ")" * 5000}, "^pattern: .{,200}: nested too deeply$"),
        ({"pattern": r"(\w|\w\w|\w\w\w)+(?=€)"}, "expected a regular expression that matches in reasonable time"),
        *(
            ({"pattern": pattern}, "always matches at least one character, got .*, which also matches the empty text$")
            for pattern in ("x*", r"\b", "$", "(?=a)", r"\w*", r"\w+|", "(?i)()", r"\w+|\s*", "(?<=,)", r"(?r)\s?")
        ),
        ({"vocab_size": 256}, r"vocab_size: expected at least 257 \(256 bytes and 1 special\), got 256$"),
        ({"vocab_size": -(10**30)}, "vocab_size: expected at least 257"),
        ({"vocab_size": 10**9}, "vocab_size: expected at most 2097152, got 1000000000$"),
        ({"special_tokens": []}, r"special_tokens: expected '<\|endoftext\|>' among them, got \[\]$"),
        ({"special_tokens": [END, END]}, "special_tokens: expected no duplicates"),
        ({"special_tokens": [END, ""]}, "special_tokens: expected texts of two bytes or more, got ''$"),
        ({"special_tokens": [END, "a"]}, "special_tokens: expected texts of two bytes or more, got 'a'$"),
        ({"special_tokens": [END, "é" * 501]}, r"special_tokens\[1\]: expected at most 1000 bytes, got 1002$"),
        ({"special_tokens": [END, *map(str, range(100, 10_100))]}, "expected at most 10000, got 10001$"),
        *(
            ({"special_tokens": [END, token]}, "expected no overlap with .*, which would hide the ends of documents$")
            for token in (END + END, f"\n{END}", f"{END}\n", ".<", "x<|endof")
        ),
    ],
)  # fmt: skip
def test_values_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        config(**changes)
    assert len(str(caught.value)) < 400


def test_why_a_special_token_must_not_hide_the_ends_of_documents() -> None:
    # Why it is refused: the earlier token wins, and then the longer one.
    assert reference.pre_tokenize(f"one.{END}", [END, ".<"]) == ["one", ".<", "|", "endoftext", "|>"]
    assert END not in reference.pre_tokenize(f"one{END}{END}", [END, END + END])
