import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import yaml

from lm import config
from lm.corpus.config import END_OF_TEXT
from lm.corpus.files import held_out
from lm.corpus.sources import open_corpus, story_bits, story_seeds
from lm.corpus.stories import stories
from lm.corpus.writer import write_corpus
from lm.errors import UserError

DATA = config.load(Path(__file__).parents[2] / "params.yaml").data


def files_data(**changes):
    return dataclasses.replace(DATA, source="files", **changes)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Fifty documents in two files in the current folder."""
    monkeypatch.chdir(tmp_path)
    texts = [f"Document {number}." for number in range(50)]
    Path("a.txt").write_text("<|endoftext|>\n".join(texts[:30]))
    Path("b.txt").write_text("<|endoftext|>\n".join(texts[30:]))
    return texts


def read(data, folder):
    """Write the corpus, and return the documents of both splits and the provenance."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    written = write_corpus(data, open_corpus(data, folder, "none"), raw, folder / "unfinished", "none")
    train, val = ((raw / f"{split}.txt").read_bytes().decode().split(END_OF_TEXT)[:-1] for split in ("train", "val"))
    return train, val, written["provenance"]


def test_the_splits_get_different_stories(tmp_path):
    data = dataclasses.replace(DATA, source="stories", seed=5, train_bytes=50_000, val_bytes=50_000)
    train, val, _ = read(data, tmp_path)
    assert train and val and not set(val) & set(train)
    seeds = {seed for data_seed in range(100) for seed in story_seeds(data_seed).values()}
    assert len(seeds) == 200


def test_story_bits_is_the_sum_over_the_first_stories():
    expected = math.fsum(story.bits for story in itertools.islice(stories(7), 20))
    assert story_bits(7, 20) == expected > 0


def test_the_order_of_files_does_not_change_the_splits(texts, tmp_path):
    for names in (["a.txt", "b.txt"], ["b.txt", "a.txt"]):
        train, val, _ = read(files_data(train_files=names, val_fraction=0.2, seed=3), tmp_path)
        ordered = texts if names[0] == "a.txt" else texts[30:] + texts[:30]
        assert val == [text for text in ordered if held_out(text, 3, 0.2)]
        assert train == [text for text in ordered if not held_out(text, 3, 0.2)]


def test_files_with_val_files(texts, tmp_path):
    train, val, provenance = read(files_data(train_files=["a.txt"], val_files=["b.txt"]), tmp_path)
    assert (train, val) == (texts[:30], texts[30:])
    assert [entry["path"] for entry in provenance] == ["a.txt", "b.txt"]


def test_val_files_that_are_train_files_under_another_name(texts, tmp_path):
    Path("copy.txt").write_bytes(Path("a.txt").read_bytes())
    with pytest.raises(
        UserError, match=r"^data\.val_files: copy\.txt has the same content as a\.txt in data\.train_files"
    ):
        read(files_data(train_files=["*.txt"], val_files=["copy.txt"]), tmp_path)


def test_val_files_that_repeat_train_files(texts, tmp_path):
    Path("c.txt").write_text(Path("a.txt").read_text() + "\n")
    Path("d.jsonl").write_text(json.dumps({"text": texts[30] + "\r\n"}))
    for val_file, count, total in [("c.txt", 30, 30), ("d.jsonl", 1, 1)]:
        data = files_data(train_files=["a.txt", "b.txt"], val_files=[val_file])
        with pytest.raises(UserError, match=rf"^data\.val_files: {count} of {total} documents are also in data\.train"):
            read(data, tmp_path)
    data = files_data(train_files=["b.txt"], val_files=["c.txt"])
    assert read(data, tmp_path)[:2] == (texts[30:], texts[:30])


def test_a_file_that_is_listed_twice_is_read_once(texts, tmp_path, capsys):
    names = ["a.txt", str(tmp_path / "a.txt"), "b.txt"]
    train, val, provenance = read(files_data(train_files=names[:2], val_files=names[2:]), tmp_path)
    assert (train, val) == (texts[:30], texts[30:])
    assert [entry["path"] for entry in provenance] == ["a.txt", "b.txt"]
    assert "data.train_files: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["One.\n\nTwo.\n\nThree.", "One.\r\n\r\nTwo.\r\n\r\nThree."])
@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
def test_the_separator_does_not_depend_on_line_ends(tmp_path, monkeypatch, capsys, text, separator):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes(text.encode())
    Path("v.jsonl").write_text('{"text": "Val."}')
    data = files_data(train_files=["a.txt"], val_files=["v.jsonl"], separator=separator)
    assert read(data, tmp_path)[0] == ["One.", "Two.", "Three."]
    assert not capsys.readouterr().err


def test_a_separator_that_does_not_occur_is_reported_once(texts, tmp_path, capsys):
    for number in range(3):
        Path(f"book{number}.txt").write_text(f"Book {number}.")
    train, val, _ = read(files_data(train_files=["book*.txt", "a.txt"], val_fraction=0.3), tmp_path)
    assert sorted(train + val) == sorted([*texts[:30], "Book 0.", "Book 1.", "Book 2."])
    assert capsys.readouterr().err.splitlines() == [
        "book0.txt: data.separator '<|endoftext|>' does not occur in the text, so the file is one document, as are "
        "others without it"
    ]


def test_a_missing_separator_is_shown_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a\n.txt").write_text("One.")
    Path("v.jsonl").write_text('{"text": "Val."}')
    read(files_data(train_files=["a\n.txt"], val_files=["v.jsonl"], separator="\n\n"), tmp_path)
    assert capsys.readouterr().err.startswith(r"a\n.txt: data.separator '\n\n' does not occur in the text, so the file")


@pytest.mark.parametrize(
    ("separator", "advice"),
    [
        (r"\n\n", r'"\n\n"'),  # as `dvc exp run -S 'data.separator="\n\n"'` stores it
        (r"\r\n---\r\n", r'"\r\n---\r\n"'),
        (r"\t", r'"\t"'),
    ],
)
def test_a_backslash_in_place_of_a_line_end(texts, tmp_path, separator, advice):
    with pytest.raises(UserError) as caught:
        read(files_data(train_files=["a.txt"], separator=separator), tmp_path)
    assert str(caught.value) == (
        f"a.txt: data.separator {separator!r} does not occur in the text; it has a backslash and a letter in place of "
        f"a line end or tab: write it in params.yaml with double quotes, as separator: {advice}"
    )
    assert yaml.safe_load(advice) == separator.encode().decode("unicode_escape")


def test_a_backslash_may_be_meant(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in [("a.txt", r"One.\n\nTwo."), ("b.txt", r"Three.\newpage Four."), ("c.txt", "Five.")]:
        Path(name).write_text(text)
    data = files_data(train_files=["a.txt"], val_files=["b.txt"], separator=r"\n\n")
    with pytest.raises(UserError, match=r"^b\.txt: data\.separator .* does not occur"):
        read(data, tmp_path)
    data = files_data(train_files=["b.txt"], val_files=["c.txt"], separator=r"\newpage")
    assert read(data, tmp_path)[:2] == (["Three.", "Four."], ["Five."])


@pytest.mark.parametrize(("fraction", "split"), [(1e-9, "val"), (1 - 1e-9, "train")])
def test_a_split_that_gets_no_document(tmp_path, monkeypatch, fraction, split):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("One. Two.")
    data = files_data(train_files=["a.txt"], separator="\n", val_fraction=fraction)
    with pytest.raises(UserError) as caught:
        read(data, tmp_path)
    assert str(caught.value) == (
        f"data.train_files: too few documents, none is left for {split}; check data.separator, which is '\\n', and "
        "data.text_column, change data.val_fraction, or set data.val_files"
    )


def test_urls_are_downloaded_once(loopback, tmp_path):
    loopback.files |= {"/a.txt": b"One.<|endoftext|>Two.", "/v.jsonl": b'{"text": "Three."}\n'}
    urls = [f"{loopback.endpoint}/a.txt", f"{loopback.endpoint}/v.jsonl"]
    data = files_data(train_files=urls[:1], val_files=urls[1:])
    for _ in range(2):
        train, val, provenance = read(data, tmp_path)
        assert (train, val) == (["One.", "Two."], ["Three."])
    assert [entry["url"] for entry in provenance] == urls
    assert len(loopback.requests) == 2


def test_a_mistake_in_val_files_shows_before_train_is_downloaded(loopback, tmp_path):
    with pytest.raises(UserError, match=r"data\.val_files: there is no file none\.txt"):
        read(files_data(train_files=[f"{loopback.endpoint}/a.txt"], val_files=["none.txt"]), tmp_path)
    assert not loopback.requests
