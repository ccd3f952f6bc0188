from pathlib import Path

import pytest

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.report.blocks import Facts, Missing, Plot, Table, Tokens
from lm.report.page import fill
from lm.report.run import Run
from lm.report.tokenizer import TOKENIZER, _visible, bytes_per_token, growth
from lm.tokenizer import reference
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer
from tests.report.conftest import DOCUMENTS, write_tokens


def blocks_of(run):
    return fill(run, "test", [TOKENIZER]).sections[0].blocks


def test_the_end_of_a_document_is_a_token_without_bytes():
    merges = [(b"a", b"b")]
    tokenizer = Tokenizer(build_vocab(merges, [END_OF_TEXT]), merges, [END_OF_TEXT])
    assert bytes_per_token(tokenizer, f"ab{END_OF_TEXT}") == 2 / 2
    assert bytes_per_token(tokenizer, f"abé{END_OF_TEXT}") == 4 / 4


def test_the_first_merges_are_those_of_a_smaller_vocabulary(project):
    text = (project / "LICENSE").read_text()[:900] + END_OF_TEXT
    tokenizer = Tokenizer(*reference.train(text, 530, [END_OF_TEXT]), [END_OF_TEXT])
    num_bytes = len(text.removesuffix(END_OF_TEXT).encode())
    expected = []
    for vocab_size in (257, 512, tokenizer.vocab_size):
        ids = reference.encode(text, *reference.train(text, vocab_size, [END_OF_TEXT]), [END_OF_TEXT])
        expected.append((vocab_size, num_bytes / len(ids)))
    assert growth(tokenizer, text) == expected
    assert [size for size, _ in expected] == [257, 512, 530]
    assert expected[0][1] == num_bytes / (num_bytes + 1)


def test_the_vocabulary_of_a_tokenizer_without_merges_does_not_grow():
    tokenizer = Tokenizer(build_vocab([], []), [])
    assert growth(tokenizer, "abc") == [(256, 1.0)]


def test_a_special_token_may_have_any_id():
    merges = [(b"a", b"b"), (b"ab", b"c")]
    tokens = [END_OF_TEXT.encode(), *build_vocab(merges, []).values()]
    tokenizer = Tokenizer(dict(enumerate(tokens)), merges, [END_OF_TEXT])
    assert growth(tokenizer, f"abcabc{END_OF_TEXT}") == [(257, 6 / 7), (259, 6 / 3)]


def test_all_blocks_of_a_run_with_tokens(encoded_run):
    facts, plot, example, longest, comparison = blocks_of(encoded_run)
    assert isinstance(facts, Facts)
    assert ("vocabulary that the train split uses", "50.0%") in facts.rows
    assert isinstance(plot, Plot)
    mean = encoded_run.metrics("encode_memmap")["val_bytes_per_token"]
    assert plot.alt.endswith(f", {mean:.2f} with 300 tokens")
    assert TOKENIZER.finding(encoded_run) == f"A token stands for {mean:.2f} bytes of text on average."
    assert isinstance(example, Tokens)
    assert isinstance(longest, Table)
    assert isinstance(comparison, Missing) and "lm report --gpt2 FOLDER" in comparison.message


def test_the_example_is_the_beginning_of_a_document_with_visible_line_breaks(encoded_run):
    example = blocks_of(encoded_run)[2]
    shown = "".join(span.text for span in example.spans)
    assert DOCUMENTS[0].replace("\n", "↵\n").startswith(shown)
    assert len(example.spans) == 70
    assert example.title.startswith("The first 70 tokens")
    assert example.note == "Each piece is one token. ↵ is a line break."


def test_parts_of_a_character_and_tags_are_shown_as_text(encoded_run):
    tokenizer = Tokenizer(build_vocab([], [END_OF_TEXT]), [], [END_OF_TEXT])
    tokenizer.save(encoded_run.folder / "data" / "tokenizer")
    write_tokens(encoded_run.folder / "data" / "tokens", tokenizer, ["<é>"])
    run = Run(encoded_run.folder)
    example = blocks_of(run)[2]
    assert [span.text for span in example.spans] == ["<", "\ufffd", "\ufffd", ">"]
    assert "\ufffd is a part of a character" in example.note
    assert "<span>&lt;</span>" in fill(run, "test", [TOKENIZER]).html()


def test_the_longest_tokens(encoded_run):
    longest = blocks_of(encoded_run)[3]
    vocab = encoded_run.tokenizer.vocab.values()
    lengths = sorted((len(token) for token in vocab if token != END_OF_TEXT.encode()), reverse=True)
    assert [int(row[1]) for row in longest.rows] == lengths[:10]
    for token, length, parts in longest.rows:
        assert token == parts.replace(" + ", "")
        assert len(token.replace("␣", " ").encode()) == int(length)


@pytest.mark.parametrize(("token", "text"), [(b" a\n", "␣a\\n"), (b"\xc3", "\ufffd"), ("é".encode(), "é")])
def test_tokens_in_a_table_are_visible(token, text):
    assert _visible(token) == text


def test_a_run_without_tokens_still_shows_the_longest_tokens(planned_run, small_tokenizer):
    small_tokenizer.save(planned_run.folder / "data" / "tokenizer")
    kinds = [block.kind for block in blocks_of(planned_run)]
    assert kinds == ["missing", "missing", "table", "missing"]  # metrics/tokens.json, data/tokens, and GPT-2


def test_a_run_without_a_tokenizer_names_the_stage(planned_run):
    messages = [block.message for block in blocks_of(planned_run)]
    assert any("dvc repro train_bpe" in message for message in messages)


def test_gpt2s_files_are_compared_on_the_same_text(encoded_run, small_tokenizer, tmp_path):
    folder = tmp_path / "gpt2"
    small_tokenizer.save(folder)
    (folder / "pre_tokenizer.json").unlink()  # GPT-2 has none
    table = blocks_of(Run(encoded_run.folder, gpt2=folder))[4]
    assert isinstance(table, Table)
    (name, *ours), (other, *theirs) = table.rows
    assert (name, other) == ("this one", "GPT-2's")
    mean = encoded_run.metrics("encode_memmap")["val_bytes_per_token"]
    assert ours == theirs == ["300", f"{mean:.2f}"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", None, "there is no such file"),
        ("vocab.json", "{", "not valid JSON"),
        ("merges.txt", "a b c\n", "expected two tokens separated by a space"),
        ("merges.txt", "a zz\n", "is not in the vocabulary"),
    ],
)
def test_a_folder_that_is_not_gpt2s_is_named_in_one_line(encoded_run, small_tokenizer, tmp_path, name, content, reason):
    folder = tmp_path / "gpt2"
    small_tokenizer.save(folder)
    path: Path = folder / name
    path.unlink() if content is None else path.write_text(content)
    missing = blocks_of(Run(encoded_run.folder, gpt2=folder))[4]
    assert isinstance(missing, Missing)
    assert missing.message.startswith("--gpt2: expected a folder with GPT-2's vocab.json and merges.txt; ")
    assert reason in missing.message
    assert "dvc repro" not in missing.message


def test_the_section_without_tokens_of_the_val_split_raises_no_other_error(planned_run):
    with pytest.raises(UserError, match=r"tokens\.json: there is no such file; make it with: dvc repro encode_memmap"):
        TOKENIZER.finding(planned_run)
