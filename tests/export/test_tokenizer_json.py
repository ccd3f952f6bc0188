import copy
import json
import re
import unicodedata

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.export.tokenizer_json import read_tokenizer_json, tokenizer_json
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
SPECIAL_TOKENS = [END, "<|end|>", "<|end|><|end|>", "<| pad |>", "the"]
# Characters of Python's Unicode version, which is older than that of both libraries, so both know all of them.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
PIECES = st.one_of(KNOWN, st.sampled_from([*SPECIAL_TOKENS, "'s", "'LL", "'ſ", " ", "  ", "\n", "\r\n", "1234", "é"]))


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def both(request, train_tokenizer) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    tokenizer = train_tokenizer(request.param, SPECIAL_TOKENS)
    return tokenizer, load(tokenizer_json(tokenizer))


def load(content: dict) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def test_ids_and_text_are_equal(both, text):
    ours, theirs = both
    ids = ours.encode(text)
    assert theirs.encode(text).ids == ids and max(ids) > 256
    assert theirs.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=30))
def test_ids_of_any_text_are_equal(both, pieces):
    ours, theirs = both
    text = "".join(pieces)
    assert theirs.encode(text).ids == ours.encode(text)


def characters(only_edges: bool) -> list[str]:
    """All assigned characters, or only the first and the last one of each range of code points of one category."""
    categories = [unicodedata.category(chr(code)) for code in range(0x110000)]
    return [
        chr(code)
        for code, category in enumerate(categories)
        if category not in ("Cs", "Cn", "Co")
        and not (only_edges and categories[code - 1] == category == categories[(code + 1) % 0x110000])
    ]


def assert_equal_splits(ours: Tokenizer, theirs: tokenizers.Tokenizer, characters: list[str]) -> None:
    for start in range(0, len(characters), 20_000):
        text = "x".join(f" {character}{character}1 " for character in characters[start : start + 20_000])
        assert theirs.encode(text).ids == ours.encode(text)


def test_characters_at_the_edges_of_all_categories_are_split_the_same_way(both):
    edges = characters(only_edges=True)
    assert len(edges) > 3000
    assert_equal_splits(*both, edges)


@pytest.mark.slow
def test_all_characters_are_split_the_same_way(both):
    assert_equal_splits(*both, characters(only_edges=False))


def test_special_tokens_keep_their_ids_and_can_be_skipped(both):
    ours, theirs = both
    ids = ours.encode(f"a{END}b")
    assert theirs.token_to_id(END) == ours.end_of_text_id
    assert theirs.decode(ids) == "ab"


def test_real_texts_have_the_same_ids(gpt2, shared_data):
    theirs = load(tokenizer_json(gpt2))
    for path in sorted(shared_data.glob("*.txt")):
        with path.open(encoding="utf-8") as file:
            text = file.read(20_000)
        assert theirs.encode(text).ids == gpt2.encode(text), path.name


@pytest.mark.slow
def test_complete_real_texts_have_the_same_ids(gpt2, shared_data):
    theirs = load(tokenizer_json(gpt2))
    for path in sorted(shared_data.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        for start in range(0, len(text), 1 << 20):
            part = text[start : start + (1 << 20)]
            assert theirs.encode(part).ids == gpt2.encode(part), path.name


def test_custom_patterns_are_refused(train_tokenizer):
    with pytest.raises(UserError, match=r"tokenizer.pattern: expected gpt2 or gpt4, got '\\\\S\+'"):
        tokenizer_json(train_tokenizer(r"\S+", [END]))


def test_a_named_pattern_may_be_given_in_full(train_tokenizer):
    assert tokenizer_json(train_tokenizer(PATTERNS["gpt4"], [END])) == tokenizer_json(train_tokenizer("gpt4", [END]))


@pytest.mark.parametrize("special", ["<|naïve|>", " the", "\n"])  # the alphabet's ï is the byte 0xEF
def test_ambiguous_special_tokens_are_refused(tokenizer, special):
    tokenizer = Tokenizer(tokenizer.vocab, tokenizer.merges, [END, special])
    with pytest.raises(UserError, match=re.escape(f"special_tokens: {special!r} cannot be exported")):
        tokenizer_json(tokenizer)


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_a_tokenizer_survives_the_round_trip(train_tokenizer, tmp_path, pattern):
    tokenizer = train_tokenizer(pattern, SPECIAL_TOKENS)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)), encoding="utf-8")
    back = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert (back.hash, back.vocab, back.merges) == (tokenizer.hash, tokenizer.vocab, tokenizer.merges)


def test_files_written_by_the_library_are_read(train_tokenizer, tmp_path, text):
    """The library writes merges as pairs, and represents GPT-2's pattern by ByteLevel."""
    tokenizer = train_tokenizer("gpt2", [END])
    theirs = load(tokenizer_json(tokenizer))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    back = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert back.hash == tokenizer.hash and back.encode(text) == theirs.encode(text).ids


LLAMA_3 = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, "does not support: normalizer NFC"),
        ("post_processor", {"type": "TemplateProcessing"}, "does not support: post_processor TemplateProcessing"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "pre_tokenizer has none of our patterns"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [LLAMA_3]}, "pre_tokenizer has none of our patterns"),
        ("pre_tokenizer", None, "pre_tokenizer has none of our patterns"),
        ("model", {"type": "Unigram"}, "does not support: model.type Unigram"),
        ("model", {"ignore_merges": True}, "does not support: model.ignore_merges True"),
        ("model", {"end_of_word_suffix": "</w>"}, "does not support: model.end_of_word_suffix </w>"),
        ("model", {"dropout": 0.1}, "does not support: model.dropout 0.1"),
        ("model", {"vocab": {"▁the": 0}}, "'▁the' is not written in GPT-2's byte alphabet"),
        ("model", {"vocab": {"a": 1}}, "expected the ids 0 to 1, but 0 is missing"),
        ("model", {"vocab": []}, "damaged"),
        ("model", {"merges": ["abc"]}, "damaged"),
        ("model", None, "damaged"),
        ("added_tokens", [{"id": 1, "content": "x", "lstrip": True}], "does not support: lstrip of 'x'"),
    ],
)
def test_unsupported_settings_are_refused_by_name(tokenizer, tmp_path, section, value, message):
    content = copy.deepcopy(tokenizer_json(tokenizer))
    content[section] = {**content[section], **value} if section == "model" and value else value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_tokenizer_json(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, "{", "[]", "1"])
def test_missing_and_damaged_files_are_refused(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json: (cannot be read|damaged)"):
        read_tokenizer_json(path)
