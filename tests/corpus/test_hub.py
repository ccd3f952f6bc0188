"""The sources on the hub: the stage with the real libraries, against the loopback hub."""

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

from lm.corpus import hub
from lm.errors import UserError

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


def test_tinystories(run_stage, tinystories, tmp_path):
    assert not run_stage()
    assert raw(tmp_path, "val.txt") == "One.<|endoftext|>Two.<|endoftext|>"
    assert raw(tmp_path, "train.txt") == "".join(f"Story {number}. é" * 10 + "<|endoftext|>" for number in range(5000))
    metrics = json.loads((tmp_path / "metrics/download.json").read_text())
    train_bytes = len(raw(tmp_path, "train.txt").encode()) - 13 * 5000
    assert metrics == {"train_bytes": train_bytes, "train_documents": 5000, "val_bytes": 8, "val_documents": 2}
    assert manifest(tmp_path)["provenance"] == [
        {
            "url": f"hf://datasets/roneneldan/TinyStories@{tinystories.commit}/{name}",
            "revision": tinystories.commit,
            "size": len(STORIES[name]),
            "sha256": hashlib.sha256(STORIES[name]).hexdigest(),
        }
        for name in (TRAIN, VALID)
    ]


def test_a_later_run_stays_at_the_recorded_commit_and_needs_no_network(run_stage, tinystories, loopback, tmp_path):
    assert not run_stage()
    first = manifest(tmp_path)
    tinystories.commit, tinystories.files[VALID] = "f" * 40, b"Other."
    loopback.clear_log()
    assert not run_stage()
    assert manifest(tmp_path) == first
    assert not loopback.requests


def test_a_killed_download_resumes_at_the_same_commit(start_stage, run_stage, tinystories, loopback, tmp_path):
    loopback.seconds_per_chunk = 0.1
    process = start_stage()
    deadline = time.monotonic() + 30
    while not (parts := [part for part in tmp_path.glob("cache/*train.txt.part") if part.stat().st_size > 100_000]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    assert run_stage() == "error: cache: another download is running in this folder; wait for it to finish"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.glob("raw/*")) and not list(tmp_path.glob("cache/*train.txt"))
    kept = parts[0].stat().st_size

    loopback.seconds_per_chunk = 0
    loopback.clear_log()
    loopback.cuts = [50_000]  # the connection is lost once
    tinystories.branches.clear()  # `main` no longer exists, so only the recorded commit can be read
    assert not run_stage()
    assert raw(tmp_path, "train.txt").count("<|endoftext|>") == 5000
    assert [(body.range, body.sent) for body in loopback.bodies] == [
        (f"bytes={kept}-", 50_000),
        (f"bytes={kept + 50_000}-", len(STORIES[TRAIN]) - kept - 50_000),
    ]


def test_a_damaged_file(run_stage, tinystories, loopback, tmp_path):
    loopback.damaged = True
    assert "the damaged download was deleted, run again to start over" in run_stage()
    assert not list(tmp_path.glob("cache/*.part")) and not list(tmp_path.glob("raw/*"))


def test_no_network(run_stage, loopback):
    with socket.socket() as listener:  # bound but not listening, so connections are refused
        listener.bind(("127.0.0.1", 0))
        loopback.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        error = run_stage()
        assert time.monotonic() - started < 5
    assert "cannot be reached (Connection refused); check the network" in error and "data.source to files" in error


def test_offline_mode(run_process):
    error = run_process(environment={"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE is set; unset it, or set data.source to files or stories" in error


def test_a_login_page_instead_of_the_hub(run_stage, loopback):
    loopback.files["/api/datasets/roneneldan/TinyStories/revision/main"] = b"<html>Welcome to our hotel</html>"
    assert f"{loopback.endpoint}: unexpected response, unlike the hub; check HF_ENDPOINT" in run_stage()


def test_no_such_repository(run_stage):
    error = run_stage(source="openwebtext", repository="no/such")
    assert "no/such@main: no such dataset at" in error and "log in with `hf auth login` or set HF_TOKEN" in error


def test_an_invalid_repository_name(run_stage, tmp_path):
    error = run_stage(source="openwebtext", repository="not a name")
    assert error == "error: params.yaml: data.repository: expected OWNER/NAME, got 'not a name'"
    with pytest.raises(UserError, match=r"^not a name@main: not a valid dataset name; expected OWNER/NAME$"):
        hub.pin("not a name", "main", tmp_path)


def test_no_such_revision(run_stage, add_repository):
    add_repository("a/b", files={"x.txt": b"x"})
    error = run_stage(source="openwebtext", repository="a/b", revision="v9")
    assert "a/b@v9: no such branch, tag or commit" in error and "check data.revision" in error


def test_no_such_file(run_stage, tinystories):
    del tinystories.files[TRAIN]
    assert f"{TRAIN}: no such file at" in run_stage()


def test_no_such_files_in_a_repository(run_stage, add_repository):
    add_repository("a/b", files={"x.csv": b"x"})
    error = run_stage(source="openwebtext", repository="a/b")
    assert "a/b has neither owt_valid.txt.gz and owt_train.txt.gz nor Parquet files" in error


def test_a_gated_repository_without_and_with_a_login(run_stage, tinystories, monkeypatch):
    tinystories.gated, tinystories.token = True, "hf_right"
    error = run_stage()
    assert "access is restricted; request it" in error and "`hf auth login` or set HF_TOKEN" in error
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert not run_stage()


def test_an_empty_file(run_stage, tinystories):
    tinystories.files[VALID] = b""
    assert f"{VALID}: the file is empty" in run_stage()


def test_invalid_utf8_is_reported_with_file_and_offset(run_stage, tinystories, tmp_path):
    tinystories.files[TRAIN] = STORIES[TRAIN][:70_000] + b"\xff" + STORIES[TRAIN][70_000:]
    assert f"{TRAIN}: not UTF-8 text at byte 70000 (0xff)" in run_stage()
    assert not os.listdir(tmp_path / "raw")


def test_openwebtext_from_compressed_text(run_stage, add_repository, tmp_path):
    files = {
        "owt_train.txt.gz": gzip.compress(b"<|endoftext|>".join(b"Page %d" % number for number in range(9))),
        "owt_valid.txt.gz": gzip.compress(b"Val 1<|endoftext|>Val 2"),
    }
    add_repository("stanford-cs336/owt-sample", files=files)
    assert not run_stage(source="openwebtext", train_documents=3)
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


@pytest.mark.parametrize("runner", ["run_stage", pytest.param("run_process", marks=pytest.mark.slow)])
def test_openwebtext_from_a_stream_of_parquet(runner, request, shards, loopback, tmp_path):
    run = request.getfixturevalue(runner)
    loopback.cuts = [10]
    assert not run(source="openwebtext", repository="someone/openwebtext", val_bytes=1000, train_documents=150)
    val, train = (raw(tmp_path, f"{name}.txt").split("<|endoftext|>")[:-1] for name in ("val", "train"))
    assert not loopback.cuts
    # The fourth page reaches 1,000 bytes. train continues with the fifth page and with the second shard.
    assert [page.split(".")[0] for page in val + train] == [f"Page {number}" for number in range(154)]
    assert len(val) == 4 and {len(page) for page in val} == {len("Page 0. ") + 250}
    assert manifest(tmp_path)["provenance"] == [
        {
            "url": f"hf://datasets/someone/openwebtext@{shards.commit}/{name}",
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
        ({"text_column": "id"}, "expected text in column 'id', got int64; set data.text_column"),
    ],
)
def test_errors_in_parquet_columns(run_stage, shards, changes, says):
    assert says in run_stage(source="openwebtext", repository="someone/openwebtext", val_bytes=1000, **changes)


def without_footer(data):
    length = int.from_bytes(data[-8:-4], "little")
    return data[: -8 - length] + bytes(length) + data[-8:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        # pyarrow's messages about these two have several lines, and are OSErrors that were taken for a full disk.
        (
            without_footer,
            "not valid Parquet files (Couldn't deserialize thrift: TProtocolException: Invalid data); choose",
        ),
        (lambda data: data[:4] + bytes(200) + data[204:], "not valid Parquet files (Couldn't deserialize thrift: "),
        (lambda data: data[:100], "not valid Parquet files (Parquet magic bytes not found in footer."),
        (lambda data: b"<html>" + data, "not valid Parquet files ("),
        (lambda data: data.replace(b"Page 0.", b"Page \xff."), "column 'text' has a text that is not UTF-8"),
    ],
)
def test_damaged_parquet_files(run_stage, add_repository, damage, says):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Page 0."]}), file, compression="none")
    add_repository("someone/openwebtext", files={"train.parquet": damage(file.getvalue())})
    error = run_stage(source="openwebtext", repository="someone/openwebtext", val_bytes=1000)
    assert error.startswith(f"error: someone/openwebtext: {says}") and "\\n" not in error


def test_odd_answers_of_the_hub(loopback, run_stage):
    for answer in (
        {},
        [],
        {"id": "x"},
        {"id": "x", "sha": 1},
        {"id": "x", "sha": "0" * 40, "siblings": [1]},
        "[" * 10**5,
    ):
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        loopback.files["/api/datasets/roneneldan/TinyStories/revision/main"] = body
        assert f"{loopback.endpoint}: unexpected response, unlike the hub; check HF_ENDPOINT" in run_stage()


def test_damaged_records_are_not_used(run_stage, tinystories, tmp_path):
    """Also those of an earlier version, which had the key `address`."""
    assert not run_stage()
    expected = raw(tmp_path, "train.txt")
    records = list(tmp_path.glob("cache/*.json"))
    assert len(records) == 3
    for content in (b"", b"[]", b"{}", b"\xff", b"[" * 10**5, b'{"address": "x", "size": 1, "sha256": null}'):
        for record in records:
            record.write_bytes(content)
        assert not run_stage()
        assert raw(tmp_path, "train.txt") == expected


def test_the_password_of_the_endpoint_is_not_shown(run_stage, tinystories, loopback, capsys):
    host = loopback.endpoint.removeprefix("http://")
    for location in (host, "127.0.0.1:1"):
        loopback.endpoint = f"http://ann:secret@{location}"
        tinystories.files.pop(TRAIN, None)
        assert "://***@" in run_stage()
    assert "secret" not in "".join(capsys.readouterr())


def test_parquet_needs_val_bytes(run_stage, shards):
    error = run_stage(source="openwebtext", repository="someone/openwebtext", val_bytes=0)
    assert "data.val_bytes: expected more than 0, got 0; the first documents in the Parquet files of" in error
