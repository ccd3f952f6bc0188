import hashlib
import io
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import encode as module
from lm.tokens.encode import encode_split, move_shards
from lm.tokens.files import open_tokens
from lm.tokens.manifest import SplitManifest, read_text_facts
from tests.tokens.conftest import END, TEXTS, encode, make_tokenizer, write_text

SHARDS = [f"document {number}{END}" * (number + 1) for number in range(5)]


def encode_train(raw: Path, tokenizer: Tokenizer, unfinished: Path) -> tuple[SplitManifest, np.ndarray]:
    return encode_split(raw, "train", read_text_facts(raw)["train"], tokenizer, unfinished, "none")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_file_holds_the_ids_by_hand(folder: Path, tokenizer: Tokenizer) -> None:
    tokens, facts = open_tokens(folder, "train", tokenizer.hash)
    # 257 is "the", 258 is " the", 259 ends a document, 220 is " ", 66 "c", 64 "a", 83 "t"; 127 and 102 are "é", C3 A9.
    assert tokens[:].tolist() == [257, 220, 66, 64, 83, 259, 127, 102, 258, 258, 259, 259]
    data = (folder / "train.bin").read_bytes()
    assert data[:4] == b"\x01\x01\xdc\x00"
    assert (facts["bytes"], facts["documents"], facts["count"]) == (17, 3, 12)
    assert facts["shards"][0]["sha256"] == hashlib.sha256(data).hexdigest()


def test_occurrences_count_every_id(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = write_text(tmp_path / "raw", {**TEXTS, "train": [f"the cat{END}", f"é the the{END}{END}"]})
    _, occurrences = encode_train(raw, tokenizer, tmp_path / "unfinished")
    assert len(occurrences) == 260 and occurrences.sum() == 12
    assert (occurrences[258], occurrences[259], occurrences[256]) == (2, 3, 0)


def test_a_vocabulary_of_more_than_65_536_is_written_in_32_bits(tmp_path: Path, raw: Path) -> None:
    merges = [(bytes([left]), bytes([right])) for left in range(256) for right in range(256)]
    tokenizer = Tokenizer(build_vocab(merges, [END]), merges, [END])
    tokens, _ = open_tokens(encode(raw, tokenizer, tmp_path / "tokens"), "val", tokenizer.hash)
    assert tokens.dtype == np.dtype("<u4")
    assert tokens[:].tolist() == [64, 256 + 10 * 256 + 10, 65_536 + 256]


@settings(max_examples=25)
@given(
    shards=st.lists(st.lists(st.text("the é\n", max_size=9), min_size=1, max_size=4), min_size=1, max_size=4),
    block_tokens=st.integers(1, 9),
)
def test_the_shards_are_the_tokens_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], block_tokens: int
) -> None:
    folder, tokenizer = tmp_path_factory.mktemp("shards"), make_tokenizer()
    texts = ["".join(document + END for document in documents) for documents in shards]
    texts[0] = "a" + texts[0]  # so that the text is not empty
    whole = encode(write_text(folder / "raw", {**TEXTS, "train": ["".join(texts)]}), tokenizer, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_TOKENS", block_tokens)
        parts = encode(write_text(folder / "raw", {**TEXTS, "train": texts}), tokenizer, folder / "parts")
    data = [path.read_bytes() for path in sorted(parts.glob("train*.bin"))]
    assert b"".join(data) == (whole / "train.bin").read_bytes() and len(data) == len(shards)
    assert (parts / "val.bin").read_bytes() == (whole / "val.bin").read_bytes()
    tokens, facts = open_tokens(parts, "train", tokenizer.hash)
    expected, expected_facts = open_tokens(whole, "train", tokenizer.hash)
    assert tokens[:].tolist() == expected[:].tolist()
    for key in ("bytes", "documents", "count"):
        assert facts[key] == expected_facts[key]
    assert [shard["sha256"] for shard in facts["shards"]] == [hashlib.sha256(part).hexdigest() for part in data]


@pytest.mark.parametrize(
    ("text", "documents", "got"),
    [
        (f"a{END}b", 1, r"1 such tokens and none at the end"),
        (f"a{END}b{END}", 3, r"2 such tokens"),
        ("", 1, r"0 such tokens"),
        ("a", 0, r"0 such tokens and none at the end"),
    ],
)
def test_a_wrong_number_of_documents_leaves_no_token_file(
    tmp_path: Path, tokenizer: Tokenizer, text: str, documents: int, got: str
) -> None:
    (tmp_path / "train-00000.txt").write_text(f"a{END}")
    (tmp_path / "train-00001.txt").write_text(text)
    shards = [{"bytes": 1, "documents": number, "sha256": ""} for number in (1, documents)]
    facts = {"bytes": 2, "documents": documents + 1, "shards": shards}
    with pytest.raises(UserError, match=rf"train-00001\.txt: expected {documents} documents.*got {got}"):
        encode_split(tmp_path, "train", facts, tokenizer, tmp_path / "unfinished", "none")
    assert [path.name for path in (tmp_path / "unfinished/train").iterdir()] == ["train-00000.bin"]


def test_a_longer_special_token_that_contains_an_end_of_text_is_rejected(raw: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(build_vocab([], []), [], [END, END + END])
    with pytest.raises(UserError, match=r"got 1 such tokens and none at the end; check tokenizer\.special_tokens"):
        encode_train(raw, tokenizer, tmp_path / "unfinished")


def test_the_error_gives_the_file_and_offset_of_a_byte_that_is_not_utf8(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = write_text(tmp_path / "raw", {**TEXTS, "train": [f"a{END}", f"the cat{END}", f"b{END}"]})
    (raw / "train-00001.txt").write_bytes(f"the ca\udcff{END}".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"train-00001\.txt: not UTF-8 at byte 6; convert the file to UTF-8"):
        encode_train(raw, tokenizer, tmp_path / "unfinished")


def peak_of_encoding(folder: Path, documents: int) -> int:
    """Return the peak memory of writing and opening the tokens of a text, in bytes."""
    text = f"the quick brown fox jumps over the lazy dogs, all of them, again and again{END}" * documents
    raw = write_text(folder / "raw", {**TEXTS, "train": [text]})
    tokenizer = make_tokenizer()
    tracemalloc.start()
    tokens, _ = open_tokens(encode(raw, tokenizer, folder / f"{documents}"), "train", tokenizer.hash)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tokens) > 60 * documents
    return peak


def test_memory_does_not_depend_on_the_length_of_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # With more threads, the number of chunks that are processed at the same time would vary.
    monkeypatch.setattr("lm.tokenizer.encoding.codec.resolve_num_threads", lambda num_threads, length: 1)
    monkeypatch.setattr(module, "_BLOCK_TOKENS", 1 << 18)
    monkeypatch.setattr("lm.tokenizer.text.fast.chunks._MAX_PIECE_LENGTH", 1 << 18)  # as for the short text
    short = peak_of_encoding(tmp_path, 20_000)
    long = peak_of_encoding(tmp_path, 80_000)
    assert long < short + 2_000_000, f"{short:,} bytes for 1.8 MB of text, {long:,} for 7"
    assert long < 64_000_000


class Interrupted(Exception):
    pass


Interrupt = Callable[[int], list[str]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Return a function that makes encoding fail after n files; it returns the names of the files that are read."""
    encode_file = Tokenizer.encode_file
    monkeypatch.setattr("lm.progress.ProgressRecord.is_due", True)

    def interrupt_after(count: int) -> list[str]:
        read: list[str] = []

        def encode_some(self: Tokenizer, path: Path, num_threads: int | None) -> Iterator[np.ndarray]:
            if len(read) == count:
                yield next(encode_file(self, path, num_threads))[:1]
                raise Interrupted
            read.append(path.name)
            yield from encode_file(self, path, num_threads)

        monkeypatch.setattr(Tokenizer, "encode_file", encode_some)
        return read

    return interrupt_after


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A train split of five shards."""
    return write_text(tmp_path / "raw", {**TEXTS, "train": SHARDS})


@pytest.fixture
def expected(text: Path, tokenizer: Tokenizer, tmp_path: Path) -> dict[str, bytes]:
    """Its token files and their manifest."""
    return contents(encode(text, tokenizer, tmp_path / "expected"))


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_an_interrupted_split_continues_after_the_finished_shards(
    text: Path, expected: dict[str, bytes], tokenizer: Tokenizer, tmp_path: Path, interrupt: Interrupt, count: int
) -> None:
    names = [f"train-0000{index}.txt" for index in range(5)]
    assert_interrupted(text, tokenizer, tmp_path, interrupt, count)
    finished = sorted(path.name for path in (tmp_path / "unfinished-tokens/train").glob("*.bin"))
    assert finished == [f"train-0000{index}.bin" for index in range(count)]
    read = interrupt(100)
    assert contents(encode(text, tokenizer, tmp_path / "tokens")) == expected
    assert read == [*names[count:], "val.txt"]
    assert not (tmp_path / "unfinished-tokens").exists()


def assert_interrupted(text: Path, tokenizer: Tokenizer, tmp_path: Path, interrupt: Interrupt, count: int) -> None:
    """Encode `count` shards; the next one is interrupted and leaves no file in the folder of the token files."""
    read = interrupt(count)
    with pytest.raises(Interrupted):
        encode(text, tokenizer, tmp_path / "tokens")
    assert len(read) == count and not list((tmp_path / "tokens").iterdir())
    (tmp_path / "tokens").rmdir()


def test_the_occurrences_of_an_interrupted_split_are_complete(
    text: Path, tokenizer: Tokenizer, tmp_path: Path, interrupt: Interrupt
) -> None:
    _, whole = encode_train(text, tokenizer, tmp_path / "whole")
    assert_interrupted(text, tokenizer, tmp_path, interrupt, 2)
    interrupt(100)
    _, occurrences = encode_train(text, tokenizer, tmp_path / "unfinished-tokens")
    assert occurrences.tolist() == whole.tolist() and occurrences.sum() > 0


def truncated_record() -> bytes:
    file = io.BytesIO()
    np.savez(file, state=np.zeros(9, np.uint8))
    return file.getvalue()[:-40]


@pytest.mark.parametrize("record", [b"", b"damaged", b"PK", truncated_record()])
def test_a_damaged_record_of_the_finished_shards_starts_over(
    text: Path,
    expected: dict[str, bytes],
    tokenizer: Tokenizer,
    tmp_path: Path,
    interrupt: Interrupt,
    record: bytes,
) -> None:
    assert_interrupted(text, tokenizer, tmp_path, interrupt, 3)
    path = tmp_path / "unfinished-tokens/train/progress.npz"
    assert path.exists()
    path.write_bytes(record)
    assert len(started_over(text, expected, tokenizer, tmp_path, interrupt)) == 6


def started_over(
    text: Path, expected: dict[str, bytes], tokenizer: Tokenizer, tmp_path: Path, interrupt: Interrupt
) -> list[str]:
    """Encode, compare the files, and return the names of the texts that are read."""
    read = interrupt(100)
    assert contents(encode(text, tokenizer, tmp_path / "tokens")) == expected
    return read


def test_another_tokenizer_starts_over(
    text: Path, expected: dict[str, bytes], tokenizer: Tokenizer, tmp_path: Path, interrupt: Interrupt
) -> None:
    merges = [(b"o", b"c")]
    other = Tokenizer(build_vocab(merges, [END]), merges, [END])
    assert_interrupted(text, other, tmp_path, interrupt, 3)
    assert len(started_over(text, expected, tokenizer, tmp_path, interrupt)) == 6


def test_another_text_starts_over(
    text: Path, expected: dict[str, bytes], tokenizer: Tokenizer, tmp_path: Path, interrupt: Interrupt
) -> None:
    write_text(text, {**TEXTS, "train": [*SHARDS[:4], f"other{END}"]})
    assert_interrupted(text, tokenizer, tmp_path, interrupt, 3)
    write_text(text, {**TEXTS, "train": SHARDS})
    assert len(started_over(text, expected, tokenizer, tmp_path, interrupt)) == 6


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_moving_the_files_can_be_interrupted(
    text: Path,
    expected: dict[str, bytes],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    def move(source: Path, target: Path) -> None:
        if len(list(target.parent.iterdir())) == count:
            raise Interrupted
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", move)
        with pytest.raises(Interrupted):
            encode(text, tokenizer, tmp_path / "tokens")
    # Every file that is there is complete. DVC deletes the folder before the stage runs again.
    left = contents(tmp_path / "tokens")
    assert left.items() <= expected.items() and len(left) == count
    shutil.rmtree(tmp_path / "tokens")
    assert contents(encode(text, tokenizer, tmp_path / "tokens")) == expected


def test_files_that_cannot_be_moved_are_reported(text: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    encode_train(text, tokenizer, tmp_path / "unfinished")
    (tmp_path / "tokens").write_text("a file instead of a folder")
    with pytest.raises(UserError, match="tokens: cannot be written"):
        move_shards(tmp_path / "unfinished", tmp_path / "tokens")
