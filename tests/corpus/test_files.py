import gzip
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus.files import expand_names, held_out, open_file, read_documents
from lm.errors import UserError


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, data):
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return path


def read(name, separator="<|endoftext|>", text_column="text"):
    return list(read_documents(open_file(name, None), separator, text_column))


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_every_format_gives_the_same_documents():
    texts = ["One.\r\n\r\nÉté.", "Two \U0001f600", "Three"]
    text = "<|endoftext|>\n".join(texts)
    rows = lines({"text": texts[0]}, {"id": 1, "text": texts[1]}, {"text": None}, {"text": " "}, {"text": texts[2]})
    names = [
        write("a.txt", text),
        write("a.txt.gz", gzip.compress(text.encode())),
        write("a.jsonl", rows),
        write("a.jsonl.gz", gzip.compress(rows.encode())),
        parquet("a.parquet", text=[texts[0], texts[1], None, "", texts[2]]),
        parquet("b.parquet", text=pyarrow.array(texts, pyarrow.large_string())),
    ]
    assert {name: read(name) for name in names} == dict.fromkeys(names, texts)


def test_values_of_a_column_are_unchanged_except_for_the_marker():
    values = ["  kept\n", "x<|endoftext|>y"]
    expected = ["  kept\n", "x", "y"]
    assert read(write("a.jsonl", lines(*({"body": value} for value in values))), text_column="body") == expected
    assert read(parquet("a.parquet", body=values), text_column="body") == expected


def test_a_custom_separator():
    write("a.txt", "One.\n---\nTwo.<|endoftext|>Three.\n---\n")
    assert read("a.txt", separator="---") == ["One.", "Two.", "Three."]


def test_names_keep_their_order_and_duplicates_are_dropped():
    for name in ("b.txt", "a.txt", "c.jsonl"):
        write(name, "x")
    url = "https://127.0.0.1/x.jsonl.gz?download=1"
    assert expand_names(["c.jsonl", "*.txt", "a.txt", url], "train_files") == ["c.jsonl", "a.txt", "b.txt", url]


def test_a_glob_may_cross_folders_and_an_existing_path_is_not_a_glob(tmp_path):
    (tmp_path / "x/y").mkdir(parents=True)
    write("x/y/a.txt", "x")
    write("x/[a].txt", "x")
    assert expand_names(["x/[a].txt", "**/*.txt"], "train_files") == ["x/[a].txt", "x/y/a.txt"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "none.txt",
            r"^data\.val_files: there is no file none\.txt; check the path, which is relative to the project folder",
        ),
        ("none/*.txt", r"^data\.val_files: no file matches none/\*\.txt; check the glob"),
        ("folder", r"^data\.val_files: folder is a folder; list its files, for example folder/\*\.txt"),
        (
            "a.csv",
            r"^data\.val_files: expected .* ending in \.txt, \.txt\.gz, \.jsonl, \.jsonl\.gz, \.parquet, got a\.csv; ",
        ),
        ("a.parquet.gz", r"got a\.parquet\.gz; rename or convert it"),
        ("https://127.0.0.1/", r"got https://127\.0\.0\.1/; rename"),
    ],
)
def test_names_that_match_no_text_file(tmp_path, name, says):
    (tmp_path / "folder").mkdir()
    write("a.csv", "x")
    write("a.parquet.gz", "x")
    with pytest.raises(UserError, match=says):
        expand_names([name], "val_files")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"", r"^a\.txt: the file is empty; choose another one$"),
        ("a.txt", b"caf\xe9 noir", r"^a\.txt: not UTF-8 text at byte 3 \(0xe9\); convert the file"),
        ("a.txt.gz", gzip.compress(b"caf\xe9", mtime=0), r"^a\.txt\.gz: not UTF-8 text at byte 3 "),
        ("a.txt.gz", b"plain text", r"^a\.txt\.gz: not a complete gzip file \(Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(bytes(1000), mtime=0)[:-9],
            r"^a\.txt\.gz: not a complete gzip file \(Compressed file ended",
        ),
        ("a.jsonl", lines({"text": "x"}) + "\n{'text': 1}", r"^a\.jsonl:3: not valid JSON \(Expecting property name"),
        ("a.jsonl", "[" * 100_000, r"^a\.jsonl:1: not valid JSON \(maximum recursion"),
        ("a.jsonl", lines({"text": "x"}, {"b": 1, "id": 2}), r"^a\.jsonl:2: has no key 'text'; .* its keys: b, id$"),
        ("a.jsonl", lines(["text"]), r"^a\.jsonl:1: has no key 'text'"),
        ("a.jsonl", lines({"text": 7}), r"^a\.jsonl:1: expected text in 'text', got 7; set data\.text_column"),
        ("a.jsonl", r'{"text": "\ud83d"}', r"^a\.jsonl:1: 'text' has an unpaired surrogate"),
        ("a.parquet", b"PAR1 not really PAR1", r"^a\.parquet: not a complete Parquet file"),
    ],
)
def test_files_that_do_not_match_their_extension(name, data, says):
    with pytest.raises(UserError, match=says):
        read(write(name, data))


def test_parquet_columns_that_are_missing_or_not_text():
    parquet("a.parquet", b=["x"], id=[1])
    with pytest.raises(UserError, match=r"^a\.parquet: has no column 'text'; set data\.text_column to one of b, id$"):
        read("a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet: expected text in column 'id', got int64"):
        read("a.parquet", text_column="id")


def test_parquet_text_that_is_not_utf8():
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"x\xff")]
    )
    with pytest.raises(UserError, match=r"^a\.parquet: row 2 is not UTF-8 text"):
        read(parquet("a.parquet", text=broken))


def test_a_file_that_is_deleted_before_it_is_read(tmp_path):
    file = open_file(write("a.txt", "x"), None)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"^a\.txt: cannot be read \(No such file or directory\)"):
        list(read_documents(file, "|", "text"))


def test_a_gzip_bomb_cannot_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.corpus.documents.MAX_DOCUMENT_CHARACTERS", 1 << 22)
    with gzip.open("bomb.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    bomb = open_file("bomb.txt.gz", None)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"^bomb\.txt\.gz: more than 4,194,304 characters without"):
            list(read_documents(bomb, "|", "text"))
        assert tracemalloc.get_traced_memory()[1] < 5 * (1 << 22)
    finally:
        tracemalloc.stop()


def test_provenance_has_the_path_as_the_user_wrote_it():
    file = open_file(write("./a.txt", "abc"), None)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file.provenance == {"path": "./a.txt", "size": 3, "sha256": sha256}


@given(st.integers(0, 2**70), st.sampled_from([0.01, 0.1, 0.5]))
def test_held_out_takes_about_the_fraction(seed, fraction):
    documents = [f"document {number}" for number in range(1000)]
    taken = sum(held_out(document, seed, fraction) for document in documents)
    # Six standard deviations of the binomial distribution.
    assert abs(taken - 1000 * fraction) < 6 * (1000 * fraction * (1 - fraction)) ** 0.5


def test_held_out_by_hand():
    # printf '1\ndocument 9' | sha256sum starts with 1996354d, which is 0.0999 of 2^32; `document 10` gives 5edbb0f7.
    assert held_out("document 9", 1, 0.1)
    assert not held_out("document 10", 1, 0.1)
    assert [held_out("document 9", seed, 0.1) for seed in range(1, 6)] == [True, False, False, False, False]
