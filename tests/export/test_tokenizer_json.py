import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.export.tokenizer_json import tokenizer_json
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.text.categories import category_ranges
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
SPECIAL_TOKENS = [END, "<|end|>", "<|end|><|end|>", "<| pad |>", "the"]
PIECES = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from([*SPECIAL_TOKENS, "'s", "'LL", "'ſ", " ", "  ", "\n", "\r\n", "1234", "é"]),
)


@pytest.fixture(scope="module", params=PATTERNS)
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


def assert_equal_splits(ours: Tokenizer, theirs: tokenizers.Tokenizer, characters: list[str]) -> None:
    for start in range(0, len(characters), 20_000):
        text = "x".join(f" {character}{character}1 " for character in characters[start : start + 20_000])
        assert theirs.encode(text).ids == ours.encode(text)


def test_characters_at_the_edges_of_all_categories_are_split_the_same_way(both):
    edges = {code for begin, end, _ in category_ranges() for code in (begin, end - 1)}
    assert_equal_splits(*both, [chr(code) for code in sorted(edges) if not 0xD800 <= code < 0xE000])


@pytest.mark.slow
def test_all_characters_are_split_the_same_way(both):
    assert_equal_splits(*both, [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000])


@pytest.mark.parametrize("text", ["a\u0558's", "a\U0003d000's", "\u0558 \U0003d0001"])
def test_letters_of_a_later_unicode_version_by_hand(both, text):
    ours, theirs = both
    assert ours.encode(text) == theirs.encode(text).ids


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


@pytest.mark.parametrize("pattern", [r"\S+", r"\w+|\W", r"(?i:ss)|[\s\S]", r"\p{N}{1,3}+|[\s\S]", r"\s++$|[\s\S]"])
def test_patterns_that_the_library_may_interpret_differently_are_refused(train_tokenizer, pattern):
    with pytest.raises(UserError, match="tokenizer.pattern: expected gpt2, gpt4, .*which other programs may interpret"):
        tokenizer_json(train_tokenizer(pattern, [END]))


def test_a_custom_pattern_that_can_be_compiled_is_exported(train_tokenizer, tmp_path, text):
    pattern = r" ?\p{Lu}?\p{Ll}*+(?!\d)|\p{N}{1,2}|\s+?(?=\S)|[\s\S]".replace(r"*+", "+")
    ours = train_tokenizer(pattern, [END])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(ours)), encoding="utf-8")
    assert load(tokenizer_json(ours)).encode(text).ids == ours.encode(text)
    assert Tokenizer.from_hugging_face(tmp_path / "tokenizer.json").hash == ours.hash


def test_a_named_pattern_may_be_given_in_full(train_tokenizer):
    assert tokenizer_json(train_tokenizer(PATTERNS["gpt4"], [END])) == tokenizer_json(train_tokenizer("gpt4", [END]))


@pytest.mark.parametrize("special", ["<|naïve|>", " the", "\n"])  # the alphabet's ï is the byte 0xEF
def test_ambiguous_special_tokens_are_refused(tokenizer, special):
    tokenizer = Tokenizer(tokenizer.vocab, tokenizer.merges, [END, special])
    with pytest.raises(UserError, match=re.escape(f"special_tokens: {special!r} cannot be exported")):
        tokenizer_json(tokenizer)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_tokenizer_survives_the_round_trip(train_tokenizer, tmp_path, pattern):
    tokenizer = train_tokenizer(pattern, SPECIAL_TOKENS)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)), encoding="utf-8")
    back = Tokenizer.from_hugging_face(tmp_path / "tokenizer.json")
    assert (back.hash, back.vocab, back.merges) == (tokenizer.hash, tokenizer.vocab, tokenizer.merges)


def test_files_written_by_the_library_are_read(train_tokenizer, tmp_path, text):
    """The library writes merges as pairs, and represents GPT-2's pattern by ByteLevel."""
    tokenizer = train_tokenizer("gpt2", [END])
    theirs = load(tokenizer_json(tokenizer))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    back = Tokenizer.from_hugging_face(tmp_path / "tokenizer.json")
    assert back.hash == tokenizer.hash and back.encode(text) == theirs.encode(text).ids


BEGIN = {"SpecialToken": {"id": END, "type_id": 0}}
AFTER = {"SpecialToken": {"id": END, "type_id": 1}}


def template(*tokens: dict[str, Any], begin: bool = True) -> dict[str, Any]:
    """Return a post-processor that puts tokens before or after a text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    special_tokens = {END: {"id": END, "ids": [376], "tokens": [END]}}
    single = [*tokens, text] if begin else [text, *tokens]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens}


def set_all(content: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (content[section] if section else content)[name] = value


SPLIT = {"type": "Split", "pattern": {"Regex": PATTERNS["gpt2"]}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"post_processor": template()},
        {"post_processor": template(BEGIN)},
        {
            "post_processor": {
                "type": "Sequence",
                "processors": [{**BYTE_LEVEL, "trim_offsets": False}, template(BEGIN)],
            }
        },
        {"post_processor": {"type": "Sequence", "processors": []}},
        {"normalizer": {"type": "Sequence", "normalizers": []}},
        {"pre_tokenizer": BYTE_LEVEL},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{**SPLIT, "behavior": "Removed", "invert": True}, BYTES],
            }
        },
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{**SPLIT, "behavior": "Isolated", "invert": True}, BYTES],
            }
        },
        {"model.dropout": 0.0, "model.continuing_subword_prefix": "", "model.end_of_word_suffix": ""},
        {"model.unk_token": END, "model.fuse_unk": True, "model.byte_fallback": True, "model.ignore_merges": True},
        {"truncation": None, "padding": None, "decoder": None},
    ],
)
def test_settings_that_change_no_ids_are_accepted(tokenizer, tmp_path, text, changes):
    content = copy.deepcopy(tokenizer_json(tokenizer))
    set_all(content, changes)
    theirs = load(content)  # as the library understands these settings
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    ours = Tokenizer.from_hugging_face(path)
    assert ours.ignore_merges or ours.hash == tokenizer.hash
    assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert theirs.encode(text).ids in (ours.encode(text), ours.encode(END + text))


def test_ignored_merges_may_change_ids(tmp_path):
    # The merges make `abc` of `ab` and `c`, but in the text `abc`, `bc` comes first.
    merges = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]
    content = tokenizer_json(Tokenizer(build_vocab(merges, [END]), merges, [END]))
    content["model"]["ignore_merges"] = True
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.from_hugging_face(path)
    assert tokenizer.token_without_merges == b"abc"
    for text in ("abc", " abc", "abcabc"):
        assert tokenizer.encode(text) == load(content).encode(text).ids
    assert len(tokenizer.encode("abc")) == 1
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("abc") == tokenizer.encode("abc")
    assert tokenizer_json(Tokenizer.load(tmp_path / "saved")) == content


@pytest.mark.parametrize("begins_document", [False, True])
def test_files_saved_by_transformers_are_read(tokenizer, tmp_path, text, begins_document):
    from transformers import AutoTokenizer

    exported = tokenizer_json(tokenizer) | {"post_processor": template(BEGIN) if begins_document else None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(exported), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "pad_token": END}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": begins_document}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs(text, truncation=True, max_length=5, padding="max_length")  # stays in the settings that are saved
    theirs.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/tokenizer.json").read_text(encoding="utf-8"))
    assert saved["post_processor"]["type"] == "TemplateProcessing"
    back = Tokenizer.from_hugging_face(tmp_path / "saved/tokenizer.json")
    assert back.hash == tokenizer.hash and back.encode(text) == tokenizer.encode(text)


CJK = {"type": "Split", "pattern": {"Regex": r"[一-龥]+|[^一-龥]"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, "does not support: normalizer NFC"),
        ("post_processor", {"type": "TemplateProcessing"}, "does not support: post_processor TemplateProcessing"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "pre_tokenizer has none of our patterns"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [CJK, BYTES]},
            "pre_tokenizer has none of our patterns",
        ),
        ("pre_tokenizer", None, "pre_tokenizer has none of our patterns"),
        ("model", {"type": "Unigram"}, "does not support: model.type Unigram"),
        ("model", {"end_of_word_suffix": "</w>"}, "does not support: model.end_of_word_suffix '</w>'"),
        ("model", {"dropout": 0.1}, "does not support: model.dropout 0.1"),
        ("model", {"vocab": {"▁the": 0}}, "'▁the' is not written in GPT-2's byte alphabet"),
        ("model", {"vocab": {"a": 1}}, "expected the ids 0 to 1, but 0 is missing"),
        ("model", {"vocab": []}, "model.vocab: expected a mapping, got []"),
        ("model", {"merges": ["abc"]}, "model.merges: expected pairs of tokens, got 'abc'"),
        ("model", {"merges": [["a", 1]]}, "model.merges: expected pairs of tokens, got ['a', 1]"),
        ("model", None, "model: expected a mapping, got None"),
        ("model", {"vocab": {"a": "0"}}, "model.vocab.a: expected a whole number, got '0'"),
        ("normalizer", {}, "does not support: normalizer None"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "does not support: normalizer Sequence"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}, "pre_tokenizer has none of our patterns"),
        ("post_processor", template(AFTER, begin=False), "does not support: post_processor TemplateProcessing"),
        ("post_processor", template({"SpecialToken": {"id": "the", "type_id": 0}}), "does not support: post_processor"),
        ("added_tokens", [{"content": "x"}], "added_tokens[0].id: missing key, expected a whole number"),
        ("added_tokens", [{"id": 9, "content": str(number), "rstrip": True} for number in range(99)], " and 94 more"),
        ("added_tokens", [{"id": 1, "content": "x", "lstrip": True}], "does not support: lstrip of 'x'"),
    ],
)
def test_unsupported_settings_are_refused_by_name(tokenizer, tmp_path, section, value, message):
    content = copy.deepcopy(tokenizer_json(tokenizer))
    content[section] = {**content[section], **value} if section == "model" and value else value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as error:
        Tokenizer.from_hugging_face(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("{", "not valid JSON"),
        ("[]", "expected a section"),
        ("1", "expected a section"),
    ],
)
def test_missing_and_damaged_files_are_refused(tmp_path, text, message):
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"tokenizer\.json:.* {message}"):
        Tokenizer.from_hugging_face(path)


ODD_VALUES = [None, True, -1, 0.5, 10**400, "", "\ud800", "\n\x1b[31m", "x" * 5000, [], [[]], {}, {"type": "BPE"}]


def replaced_values(value: Any) -> Iterator[Any]:
    """Yield copies of parsed JSON in which one value is another one."""
    yield from ODD_VALUES
    children = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    for name, child in children[:3] if len(children) > 20 else children:  # a few entries of the vocabulary
        for changed in replaced_values(child):
            copied = copy.copy(value)
            copied[name] = changed
            yield copied


def test_any_replaced_value_gives_one_line_or_a_tokenizer_that_works(tmp_path):
    merges = [(b"h", b"e"), (b"t", b"he")]
    content = tokenizer_json(Tokenizer(build_vocab(merges, [END]), merges, [END]))
    content["post_processor"] = template(BEGIN)
    path = tmp_path / "tokenizer.json"
    for changed in replaced_values(content):
        path.write_text(json.dumps(changed), encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_hugging_face(path)
        except UserError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 700, message
        else:
            assert tokenizer.decode(tokenizer.encode(f"the é{END}")) == f"the é{END}"
