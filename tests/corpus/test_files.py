import errno
import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus import web
from lm.corpus.files import expand_names, held_out, open_path, open_url, read_documents
from lm.errors import UserError

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, data):
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return path


def read(name, separator="<|endoftext|>", text_column="text"):
    return list(read_documents(open_path(name, Path(name)), separator, text_column))


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_every_format_gives_the_same_documents():
    texts = ["One.\n\nÉté.", "Two \U0001f600", "Three"]
    crlf = texts[0].replace("\n", "\r\n")
    text = "<|endoftext|>\n".join([crlf, *texts[1:]])
    rows = lines({"text": crlf}, {"id": 1, "text": texts[1]}, {"text": None}, {"text": " "}, {"text": texts[2]})
    names = [
        write("a.txt", text),
        write("a.txt.gz", gzip.compress(text.encode())),
        write("a.jsonl", rows),
        write("a.jsonl.gz", gzip.compress(rows.encode())),
        parquet("a.parquet", text=[crlf, texts[1], None, "", texts[2]]),
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
        ("HTTP://ann:secret@127.0.0.1/a.csv", r"got HTTP://\*\*\*@127\.0\.0\.1/a\.csv; rename"),
        ("s3://ann:secret@bucket/a.txt", r"got s3://\*\*\*@bucket/a\.txt; download the file and list its path"),
        ("/dev/zero", r"^data\.val_files: /dev/zero is a device or pipe; write its content to a file and list that$"),
        ("pipe.txt", r"^data\.val_files: pipe\.txt is a device or pipe"),
        ("loop.txt", r"^data\.val_files: loop\.txt: cannot be read \(Too many levels of symbolic links\)"),
        ("dangling.txt", r"^data\.val_files: there is no file dangling\.txt"),
        ("a.csv/b.txt", r"^data\.val_files: there is no file a\.csv/b\.txt"),
        ("x" * 5000 + ".txt", r"^data\.val_files: x+ \[\.\.\.\] .*x\.txt: cannot be read \(File name too long\)"),
        ("[x]" * 2000 + ".txt", r"^data\.val_files: no file matches \[x\]"),
        (b"caf\xe9.txt", r"^data\.val_files: the name of the file caf\\udce9\.txt is not UTF-8 text; rename it$"),
        ("caf*.txt", r"^data\.val_files: the name of the file caf\\udce9\.txt is not UTF-8 text; rename it$"),
    ],
)
def test_names_that_match_no_text_file(tmp_path, name, says):
    (tmp_path / "folder").mkdir()
    os.mkfifo("pipe.txt")
    os.symlink("loop.txt", "loop.txt")
    os.symlink("none", "dangling.txt")
    write(b"caf\xe9.txt", "x")
    write("a.csv", "x")
    write("a.parquet.gz", "x")
    with pytest.raises(UserError, match=says):
        expand_names([os.fsdecode(name)], "val_files")


def test_a_glob_in_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "locked/b").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path):  # permissions do not stop root
        if str(path).startswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for folder, wildcards in [("locked", "*.txt"), ("locked/b", "*/[a-z].txt"), ("locked", "**/a.txt")]:
        with pytest.raises(UserError) as caught:
            expand_names([f"{folder}/{wildcards}"], "train_files")
        assert str(caught.value) == (
            f"data.train_files: no file matches {folder}/{wildcards}: the folder {folder} cannot be read "
            "(Permission denied); check its permissions"
        )


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
        ("a.jsonl", "[" * 100_000, r"^a\.jsonl:1: not valid JSON \(nested too deeply\)"),
        ("a.jsonl", '{"id": ' + "1" * 5000 + "}", r"^a\.jsonl:1: not valid JSON \(a number with thousands of digits\)"),
        (
            "a.jsonl",
            lines(dict.fromkeys(["a\nb", "c" * 5000, *map(str, range(5000))])),
            r"^a\.jsonl:1: has no key 'text'; .* keys: a\\nb, c+ \[\.\.\.\] c+, 0, 1, 2, 3, 4, 5, 6, 7 and 4,992 more$",
        ),
        ("a.txt", LFS_POINTER, r"^a\.txt: a Git LFS pointer, .* not downloaded; run `git lfs pull` in its repository$"),
        (
            "a.txt",
            # Without the time, because the parameters are in the tests' names, which all workers must agree on.
            gzip.compress(b"One.", mtime=0),
            r"^a\.txt: compressed with gzip, although .* not say so; add \.gz to its name$",
        ),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"^a\.jsonl: compressed with gzip"),
        ("a.txt.gz", LFS_POINTER, r"^a\.txt\.gz: a Git LFS pointer"),
        ("a.parquet", LFS_POINTER, r"^a\.parquet: a Git LFS pointer"),
        ("a.jsonl", lines({"text": "x"}, {"b": 1, "id": 2}), r"^a\.jsonl:2: has no key 'text'; .* its keys: b, id$"),
        ("a.jsonl", "{}", r"^a\.jsonl:1: has no key 'text'; set data\.text_column to one of its keys: none$"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16-le"), r"^a\.jsonl: a NUL character at byte 1, as in UTF-16 text"),
        ("a.txt.gz", gzip.compress(bytes(9), mtime=0), r"^a\.txt\.gz: a NUL character at byte 0, as in UTF-16 text"),
        ("a.txt", f"\ufeff\n{LFS_POINTER}", r"^a\.txt: a Git LFS pointer"),
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


def test_parquet_columns_with_one_name():
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"]), pyarrow.array(["z"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text", "body"]), "a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet: has 2 columns 'text'; set data\.text_column to one of body$"):
        read("a.parquet")
    assert read("a.parquet", text_column="body") == ["z"]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns[:2], names=["text", "text"]), "a.parquet")
    with pytest.raises(
        UserError, match=r"^a\.parquet: has 2 columns 'text' and no other; write the file again with one"
    ):
        read("a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet: has no column 'body'; set data\.text_column to one of text$"):
        read("a.parquet", text_column="body")


@pytest.mark.parametrize("damage", ["footer", "length", "page"])
def test_a_damaged_parquet_file(tmp_path, damage):
    data = bytearray((tmp_path / parquet("a.parquet", text=["x" * 100])).read_bytes())
    if damage == "footer":  # pyarrow's own message has several lines
        length = int.from_bytes(data[-8:-4], "little")
        data[-8 - length : -8] = bytes(length)
    elif damage == "length":
        data[-8:-4] = b"\xff\xff\xff\x7f"
    else:
        data[4:40] = bytes(36)
    write("a.parquet", bytes(data))
    with pytest.raises(
        UserError, match=r"^a\.parquet: not a complete Parquet file \([^\\\n]+[^\\\n ]\); create or download"
    ):
        read("a.parquet")


def test_parquet_that_does_not_fit_into_memory(monkeypatch):
    def fail(*args, **kwargs):
        raise pyarrow.ArrowMemoryError("malloc of size 123 failed")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", fail)
    with pytest.raises(UserError, match=r"^a\.parquet: not enough memory \(malloc of size 123 failed\); use files"):
        read(parquet("a.parquet", text=["x"]))


def test_parquet_text_that_is_not_utf8():
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"x\xff")]
    )
    with pytest.raises(UserError, match=r"^a\.parquet: row 2 is not UTF-8 text"):
        read(parquet("a.parquet", text=broken))


def test_a_file_that_is_deleted_before_it_is_read(tmp_path):
    file = open_path(write("a.txt", "x"), Path("a.txt"))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"^a\.txt: cannot be read \(No such file or directory\)"):
        list(read_documents(file, "|", "text"))


def test_a_text_file_without_the_separator_is_reported():
    names = [write("a.txt", "One."), write("b.txt", "One.\r\n\r\nTwo."), write("c.jsonl", lines({"text": "x"}))]
    missing = []
    for name in names:
        list(read_documents(open_path(name, Path(name)), "\r\n\r\n", "text", missing.append))
    assert missing == ["a.txt"]


def test_a_separator_is_reported_before_the_only_document_is_read():
    missing = []
    next(read_documents(open_path(write("a.txt", "One."), Path("a.txt")), "|", "text", missing.append))
    assert missing == ["a.txt"]


def test_rows_after_a_byte_order_mark():
    rows = b"\xef\xbb\xbf".join([b"", lines({"text": "One."}).encode(), lines({"text": "\ufeffTwo."}).encode()])
    assert read(write("a.jsonl", rows)) == ["One.", "Two."]


@pytest.mark.parametrize("extension", [".txt.gz", ".jsonl", ".parquet"])
def test_a_url_in_capital_letters_with_a_login_and_a_query(loopback, tmp_path, extension):
    write("a.txt.gz", gzip.compress(b"One."))
    write("a.jsonl", lines({"text": "One."}))
    parquet("a.parquet", text=["One."])
    loopback.files[f"/a{extension}"] = (tmp_path / f"a{extension}").read_bytes()
    host = loopback.endpoint.removeprefix("http://")
    file = open_url(f"HTTP://ann:secret@{host}/a{extension}?token=secret", tmp_path)
    assert list(read_documents(file, "|", "text")) == ["One."]
    assert file.name == file.provenance["url"] == f"HTTP://***@{host}/a{extension}?token=***"
    assert not [path for path in tmp_path.iterdir() if "secret" in path.name or b"secret" in path.read_bytes()]


def test_errors_do_not_show_a_password(loopback, tmp_path, capsys):
    loopback.files["/a.jsonl"] = b"{"
    host = loopback.endpoint.removeprefix("http://")
    for location in (f"{host}/a.jsonl", f"{host}/none.jsonl", "a..b/a.jsonl", "[1/a.jsonl", "127.0.0.1:1/a.jsonl"):
        with pytest.raises(UserError) as caught:
            list(read_documents(open_url(f"http://ann:secret@{location}", tmp_path), "|", "text"))
        assert "secret" not in str(caught.value) and "://***@" in str(caught.value)
    assert "secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><html>Log in</html>", r"/a\.txt: an HTML page instead of the file; check that the URL"),
        (
            gzip.compress(b"One.", mtime=0),
            r"/a\.txt: compressed with gzip, although its name does not say so; download the file,",
        ),
        (LFS_POINTER.encode(), r"/a\.txt: a Git LFS pointer, .*; use the URL of the file itself, or `git lfs pull`"),
    ],
)
def test_a_url_that_does_not_lead_to_the_file(loopback, tmp_path, body, says):
    loopback.files["/a.txt"] = body
    with pytest.raises(UserError, match=says):
        open_url(f"{loopback.endpoint}/a.txt", tmp_path)
    loopback.files["/a.txt"] = b"One."
    assert list(read_documents(open_url(f"{loopback.endpoint}/a.txt", tmp_path), "|", "text")) == ["One."]


def test_a_page_that_an_earlier_version_has_stored(loopback, tmp_path):
    loopback.files["/a.txt"] = b"<html>Log in</html>"
    web.download(f"{loopback.endpoint}/a.txt", tmp_path)
    with pytest.raises(UserError, match="an HTML page instead of the file"):
        open_url(f"{loopback.endpoint}/a.txt", tmp_path)


def test_a_local_file_may_be_a_page():
    assert read(write("a.txt", "<html>One.</html>")) == ["<html>One.</html>"]


def test_a_gzip_bomb_cannot_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.corpus.documents.MAX_DOCUMENT_CHARACTERS", 1 << 22)
    with gzip.open("bomb.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    bomb = open_path("bomb.txt.gz", Path("bomb.txt.gz"))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"^bomb\.txt\.gz: more than 4,194,304 characters without"):
            list(read_documents(bomb, "|", "text"))
        assert tracemalloc.get_traced_memory()[1] < 5 * (1 << 22)
    finally:
        tracemalloc.stop()


def test_provenance_has_the_path_as_the_user_wrote_it():
    file = open_path(write("./a.txt", "abc"), Path("a.txt"))
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
    assert held_out(" document 9\n", 1, 0.1)
    assert [held_out("document 9", seed, 0.1) for seed in range(1, 6)] == [True, False, False, False, False]
