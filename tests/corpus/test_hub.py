"""The hub's sources through the real stage and the unmodified libraries, against the loopback hub."""

import gzip
import hashlib
import io
import json
import os
import signal
import socket
import time

import pyarrow
import pyarrow.parquet
import pytest

TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
STORIES = {
    TRAIN: ("\n<|endoftext|>\n".join(f"Story {number}. é" * 10 for number in range(5000)) + "\n").encode(),
    VALID: b"One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n",
}


@pytest.fixture
def tinystories(add_repository):
    return add_repository("roneneldan/TinyStories", files=dict(STORIES))


def raw(tmp_path, name):
    return (tmp_path / "raw" / name).read_bytes().decode()


def manifest(tmp_path):
    return json.loads(raw(tmp_path, "manifest.json"))


def test_tinystories(run, tinystories, tmp_path):
    assert run()[0] == 0
    assert raw(tmp_path, "val.txt") == "One.<|endoftext|>Two.<|endoftext|>"
    assert raw(tmp_path, "train.txt") == "".join(f"Story {number}. é" * 10 + "<|endoftext|>" for number in range(5000))
    metrics = json.loads((tmp_path / "metrics/download.json").read_text())
    train_bytes = len(raw(tmp_path, "train.txt").encode()) - 13 * 5000
    assert metrics == {"train_bytes": train_bytes, "train_documents": 5000, "val_bytes": 8, "val_documents": 2}
    assert manifest(tmp_path)["provenance"] == [
        {
            "address": f"hf://datasets/roneneldan/TinyStories@{tinystories.commit}/{name}",
            "revision": tinystories.commit,
            "size": len(STORIES[name]),
            "sha256": hashlib.sha256(STORIES[name]).hexdigest(),
        }
        for name in (TRAIN, VALID)
    ]


def test_a_later_run_stays_at_the_recorded_commit_and_needs_no_network(run, tinystories, loopback, tmp_path):
    assert run()[0] == 0
    first = manifest(tmp_path)
    tinystories.commit, tinystories.files[VALID] = "f" * 40, b"Other."
    loopback.forget()
    assert run()[0] == 0
    assert manifest(tmp_path) == first
    assert not loopback.requests


def test_a_killed_download_goes_on_at_the_same_commit(start, run, tinystories, loopback, tmp_path):
    loopback.seconds_a_chunk = 0.1
    process = start()
    deadline = time.monotonic() + 30
    while not (parts := [part for part in tmp_path.glob("cache/*train.txt.part") if part.stat().st_size > 100_000]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.glob("raw/*")) and not list(tmp_path.glob("cache/*train.txt"))
    kept = parts[0].stat().st_size

    loopback.seconds_a_chunk = 0
    loopback.forget()
    loopback.cuts = [50_000]  # and one cut connection on the way
    tinystories.branches.clear()  # main moves on; only the commit still answers
    assert run()[0] == 0
    assert raw(tmp_path, "train.txt").count("<|endoftext|>") == 5000
    assert [(body.range, body.sent) for body in loopback.bodies] == [
        (f"bytes={kept}-", 50_000),
        (f"bytes={kept + 50_000}-", len(STORIES[TRAIN]) - kept - 50_000),
    ]


def test_two_at_once(start, run, tinystories, loopback, tmp_path):
    loopback.seconds_a_chunk = 0.1
    first = start()
    while not list(tmp_path.glob("cache/*train.txt.part")):
        assert first.poll() is None
        time.sleep(0.01)
    status, error = run()
    assert (status, error) == (1, "error: cache: another download is running in this folder; wait for it to end")
    first.kill()
    first.communicate()


def test_a_damaged_body(run, tinystories, loopback, tmp_path):
    loopback.damaged = True
    status, error = run()
    assert status == 1 and "so the file was damaged on its way; it was deleted, run again" in error
    assert not list(tmp_path.glob("cache/*.part")) and not list(tmp_path.glob("raw/*"))


def test_no_network(run):
    with socket.socket() as listener:  # bound and never listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        started = time.monotonic()
        status, error = run(environment={"HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}"})
        assert status == 1 and time.monotonic() - started < 5
        assert "cannot be reached (Connection refused); check the network" in error and "data.source to files" in error


def test_offline_mode(run, tinystories):
    status, error = run(environment={"HF_HUB_OFFLINE": "1"})
    assert status == 1 and "HF_HUB_OFFLINE is set; unset it, or set data.source to files or stories" in error


def test_a_login_page_instead_of_the_hub(run, loopback):
    loopback.files["/api/datasets/roneneldan/TinyStories/revision/main"] = b"<html>Welcome to our hotel</html>"
    status, error = run()
    assert status == 1 and f"{loopback.endpoint}: did not answer as the hub does; check HF_ENDPOINT" in error


def test_no_such_repository(run):
    status, error = run(source="openwebtext", repository="no/such")
    assert status == 1
    assert "no/such@main: no such data set at" in error and "log in with `hf auth login` or set HF_TOKEN" in error


def test_a_repository_that_cannot_be_one(run):
    status, error = run(source="openwebtext", repository="not a name")
    assert status == 1 and error == "error: not a name@main: not the name of a data set; expected OWNER/NAME"


def test_no_such_revision(run, add_repository):
    add_repository("a/b", files={"x.txt": b"x"})
    status, error = run(source="openwebtext", repository="a/b", revision="v9")
    assert status == 1 and "a/b@v9: no such branch, tag or commit" in error and "check data.revision" in error


def test_no_such_file(run, tinystories):
    del tinystories.files[TRAIN]
    status, error = run()
    assert status == 1 and f"{TRAIN}: no such file at" in error


def test_no_such_files_in_a_repository(run, add_repository):
    add_repository("a/b", files={"x.csv": b"x"})
    status, error = run(source="openwebtext", repository="a/b")
    assert status == 1 and "a/b holds neither owt_valid.txt.gz and owt_train.txt.gz nor parquet files" in error


def test_a_gated_repository_without_and_with_a_login(run, tinystories, tmp_path):
    tinystories.gated, tinystories.token = True, "hf_right"
    status, error = run()
    assert status == 1 and "access is given on request" in error and "`hf auth login` or set HF_TOKEN" in error
    assert run(environment={"HF_TOKEN": "hf_right"})[0] == 0


def test_an_empty_file(run, tinystories):
    tinystories.files[VALID] = b""
    status, error = run()
    assert status == 1 and f"{VALID}: the file is empty" in error


def test_a_byte_that_is_not_utf8_names_file_and_offset(run, tinystories, tmp_path):
    tinystories.files[TRAIN] = STORIES[TRAIN][:70_000] + b"\xff" + STORIES[TRAIN][70_000:]
    status, error = run()
    assert status == 1 and f"{TRAIN}: not UTF-8 text at byte 70000 (0xff)" in error
    assert os.listdir(tmp_path / "raw") == ["val.txt"]


def test_openwebtext_from_compressed_text(run, add_repository, tmp_path):
    files = {
        "owt_train.txt.gz": gzip.compress(b"<|endoftext|>".join(b"Page %d" % number for number in range(9))),
        "owt_valid.txt.gz": gzip.compress(b"Val 1<|endoftext|>Val 2"),
    }
    add_repository("stanford-cs336/owt-sample", files=files)
    assert run(source="openwebtext", train_documents=3)[0] == 0
    assert raw(tmp_path, "train.txt") == "Page 0<|endoftext|>Page 1<|endoftext|>Page 2<|endoftext|>"
    assert raw(tmp_path, "val.txt") == "Val 1<|endoftext|>Val 2<|endoftext|>"


def shard(first, count):
    file = io.BytesIO()
    texts = [f"Page {number}. " + "word " * 50 for number in range(first, first + count)]
    pyarrow.parquet.write_table(pyarrow.table({"id": range(count), "text": texts}), file, row_group_size=10)
    return file.getvalue()


@pytest.fixture
def shards(add_repository):
    files = {f"plain_text/train-0000{number}-of-00002.parquet": shard(100 * number, 100) for number in range(2)}
    return add_repository("someone/openwebtext", files={"README.md": b"x", **files})


def test_openwebtext_from_a_stream_of_parquet(run, shards, loopback, tmp_path):
    loopback.cuts = [10]
    assert run(source="openwebtext", repository="someone/openwebtext", val_bytes=1000, train_documents=150)[0] == 0
    val, train = (raw(tmp_path, f"{name}.txt").split("<|endoftext|>")[:-1] for name in ("val", "train"))
    assert not loopback.cuts
    # 1,000 bytes are reached by the fourth page; train goes on with the fifth, over the end of the first shard.
    assert [page.split(".")[0] for page in val + train] == [f"Page {number}" for number in range(154)]
    assert len(val) == 4 and {len(page) for page in val} == {len("Page 0. ") + 250}
    assert manifest(tmp_path)["provenance"] == [
        {
            "address": f"hf://datasets/someone/openwebtext@{shards.commit}/{name}",
            "revision": shards.commit,
            "size": len(shards.files[name]),
            "sha256": hashlib.sha256(shards.files[name]).hexdigest(),
        }
        for name in sorted(shards.files)
        if name.endswith(".parquet")
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_column": "body"}, "has no column 'body'; set data.text_column to one of id, text"),
        ({"text_column": "id"}, "the column 'id' holds int64; set data.text_column"),
        ({"val_bytes": 0}, "data.val_bytes: expected more than 0 for the parquet files of someone/openwebtext"),
    ],
)
def test_mistakes_with_parquet(run, shards, changes, says):
    status, error = run(source="openwebtext", repository="someone/openwebtext", **{"val_bytes": 1000, **changes})
    assert status == 1 and says in error
