import dataclasses
import itertools
import math
from pathlib import Path

import pytest

from lm import config
from lm.corpus import web
from lm.corpus.files import held_out
from lm.corpus.sources import open_corpus, story_bits, story_seeds
from lm.corpus.stories import stories
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


def test_the_splits_get_different_stories(tmp_path):
    corpus = open_corpus(dataclasses.replace(DATA, source="stories", seed=5), tmp_path)
    val, train = (list(itertools.islice(split, 100)) for split in (corpus.val, corpus.train))
    assert not set(val) & set(train)
    seeds = {seed for data_seed in range(100) for seed in story_seeds(data_seed).values()}
    assert len(seeds) == 200


def test_story_bits_is_the_sum_over_the_first_stories():
    expected = math.fsum(story.bits for story in itertools.islice(stories(7), 20))
    assert story_bits(7, 20) == expected > 0


def test_the_order_of_files_does_not_change_the_splits(texts, tmp_path):
    splits = [
        open_corpus(files_data(train_files=names, val_fraction=0.2, seed=3), tmp_path)
        for names in (["a.txt", "b.txt"], ["b.txt", "a.txt"])
    ]
    first, second = ([set(split.val), set(split.train)] for split in splits)
    assert (
        first
        == second
        == [
            {text for text in texts if held_out(text, 3, 0.2)},
            {text for text in texts if not held_out(text, 3, 0.2)},
        ]
    )


def test_files_with_val_files(texts, tmp_path):
    corpus = open_corpus(files_data(train_files=["a.txt"], val_files=["b.txt"]), tmp_path)
    assert (list(corpus.train), list(corpus.val)) == (texts[:30], texts[30:])
    assert [entry["path"] for entry in corpus.provenance] == ["a.txt", "b.txt"]


def test_val_files_that_are_train_files_under_another_name(texts, tmp_path):
    Path("copy.txt").write_bytes(Path("a.txt").read_bytes())
    with pytest.raises(
        UserError, match=r"^data\.val_files: copy\.txt has the same content as a\.txt in data\.train_files"
    ):
        open_corpus(files_data(train_files=["*.txt"], val_files=["copy.txt"]), tmp_path)


def test_urls_are_downloaded_once(loopback, tmp_path):
    loopback.files |= {"/a.txt": b"One.<|endoftext|>Two.", "/v.jsonl": b'{"text": "Three."}\n'}
    urls = [f"{loopback.endpoint}/a.txt", f"{loopback.endpoint}/v.jsonl"]
    data = files_data(train_files=urls[:1], val_files=urls[1:])
    for _ in range(2):
        with web.lock_cache(tmp_path):
            corpus = open_corpus(data, tmp_path)
        assert (list(corpus.train), list(corpus.val)) == (["One.", "Two."], ["Three."])
    assert [entry["url"] for entry in corpus.provenance] == urls
    assert len(loopback.requests) == 2


def test_a_mistake_in_val_files_shows_before_train_is_downloaded(loopback, tmp_path):
    with pytest.raises(UserError, match=r"data\.val_files: there is no file none\.txt"):
        open_corpus(files_data(train_files=[f"{loopback.endpoint}/a.txt"], val_files=["none.txt"]), tmp_path)
    assert not loopback.requests
