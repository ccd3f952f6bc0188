import hashlib
import json
import resource
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens import encode_split, join_tokens, open_tokens, read_text_facts, token_dtype, write_manifest

END = "<|endoftext|>"
MERGES = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]
TEXTS = {"train": f"the cat{END}é the the{END}{END}", "val": f"a\n\n{END}"}
FACTS = {"train": {"bytes": 17, "documents": 3}, "val": {"bytes": 3, "documents": 1, "entropy_bits": 7.5}}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(build_vocab(MERGES, [END]), MERGES, [END])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    splits = {}
    for split, text in TEXTS.items():
        (folder / f"{split}.txt").write_bytes(text.encode())
        splits[split] = FACTS[split] | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"source": "files", "splits": splits, "provenance": []}))
    return folder


@pytest.fixture
def folder(tmp_path: Path, raw: Path, tokenizer: Tokenizer) -> Path:
    """A folder of token files, written as the stage does."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    splits = {
        split: encode_split(raw / f"{split}.txt", facts, tokenizer, folder / f"{split}.bin")[0]
        for split, facts in read_text_facts(raw).items()
    }
    write_manifest(folder, tokenizer, splits)
    return folder


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_the_array_holds_the_ids_by_hand(folder: Path, tokenizer: Tokenizer) -> None:
    tokens, facts = open_tokens(folder, "train", tokenizer.hash)
    # 257 is "the", 258 is " the", 259 ends a document, 220 is " ", 66 "c", 64 "a", 83 "t"; 127 and 102 are "é", C3 A9.
    assert tokens.tolist() == [257, 220, 66, 64, 83, 259, 127, 102, 258, 258, 259, 259]
    assert (folder / "train.bin").read_bytes()[:4] == b"\x01\x01\xdc\x00"
    assert facts == {"bytes": 17, "documents": 3, "count": 12, "sha256": facts["sha256"]}
    assert facts["sha256"] == hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest()


def test_the_text_and_its_entropy_round_trip(folder: Path, tokenizer: Tokenizer) -> None:
    tokens, facts = open_tokens(folder, "val", None)
    assert tokenizer.decode(tokens) == TEXTS["val"]
    assert (facts["bytes"], facts["documents"], facts["entropy_bits"]) == (3, 1, 7.5)


def test_the_manifest(folder: Path, tokenizer: Tokenizer) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["splits"]) == ["train", "val"]
    assert (manifest["dtype"], manifest["tokenizer_hash"], manifest["vocab_size"]) == ("uint16", tokenizer.hash, 260)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train.bin", "val.bin"]


def test_occurrences_count_every_id(raw: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    _, occurrences = encode_split(raw / "train.txt", FACTS["train"], tokenizer, tmp_path / "train.bin")
    assert len(occurrences) == 260 and occurrences.sum() == 12
    assert (occurrences[258], occurrences[259], occurrences[256]) == (2, 3, 0)


def test_the_mapped_tokens_cannot_be_changed(folder: Path) -> None:
    tokens, _ = open_tokens(folder, "train", None)
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")])
def test_the_dtype_is_the_smallest_that_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


def test_a_vocabulary_of_more_than_65_536_is_written_in_32_bits(tmp_path: Path, raw: Path) -> None:
    merges = [(bytes([left]), bytes([right])) for left in range(256) for right in range(256)]
    tokenizer = Tokenizer(build_vocab(merges, [END]), merges, [END])
    entry, _ = encode_split(raw / "val.txt", FACTS["val"], tokenizer, tmp_path / "val.bin")
    write_manifest(tmp_path, tokenizer, {"val": entry})
    tokens, _ = open_tokens(tmp_path, "val", tokenizer.hash)
    assert tokens.dtype == np.dtype("<u4")
    assert tokens.tolist() == [64, 256 + 10 * 256 + 10, 65_536 + 256]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda manifest: manifest.update(tokenizer_hash="0" * 64), "the tokens were encoded by a different tokenizer"),
        (lambda manifest: manifest.update(dtype="uint32"), "expected dtype uint16 for a vocabulary of 260, got uint32"),
        (lambda manifest: manifest.update(vocab_size=70_000), "expected dtype uint32 for a vocabulary of 70,000"),
        (lambda manifest: manifest.pop("vocab_size"), "vocab_size: missing key, expected a whole number"),
        (lambda manifest: manifest.pop("splits"), "manifest.json: splits: missing key, expected a mapping"),
        (lambda manifest: manifest["splits"].pop("train"), "manifest.json: no entry for the split 'train'"),
        (
            lambda manifest: manifest["splits"]["train"].update(count="12"),
            "splits.train.count: expected a whole number, got '12'",
        ),
        (
            lambda manifest: manifest["splits"]["train"].update(count=13),
            "expected 26 bytes for 13 tokens of uint16, got 24",
        ),
        (lambda manifest: manifest["splits"]["train"].pop("sha256"), "splits.train.sha256: missing key, expected text"),
    ],
)
def test_a_manifest_that_does_not_fit_is_rejected(
    folder: Path, tokenizer: Tokenizer, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(folder / "manifest.json", edit)
    with pytest.raises(UserError) as error:
        open_tokens(folder, "train", tokenizer.hash)
    assert message in str(error.value) and "dvc repro encode_memmap" in str(error.value)


def test_a_truncated_file_is_rejected(folder: Path) -> None:
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train\.bin: expected 24 bytes for 12 tokens of uint16, got 22;"):
        open_tokens(folder, "train", None)


def test_a_changed_byte_is_rejected(folder: Path) -> None:
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match=r"train\.bin: changed since it was written"):
        open_tokens(folder, "train", None)


def test_the_tokens_of_another_tokenizer_are_rejected(folder: Path) -> None:
    other = Tokenizer(build_vocab(MERGES, [END]), MERGES, [END], "gpt4")
    with pytest.raises(UserError, match="by a different tokenizer; make it with: dvc repro encode_memmap"):
        open_tokens(folder, "val", other.hash)


@pytest.mark.parametrize("name", ["manifest.json", "train.bin"])
def test_the_error_names_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    reason = "there is no such file" if name == "manifest.json" else r"cannot be read \(No such file or directory\)"
    with pytest.raises(UserError, match=rf"{name}: {reason}; make it with: dvc repro encode_memmap"):
        open_tokens(folder, "train", None)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_manifest_that_is_not_a_json_object_is_rejected(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json:.*make it with: dvc repro encode_memmap"):
        open_tokens(folder, "train", None)


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
    (tmp_path / "train.txt").write_text(text)
    facts = {"bytes": 1, "documents": documents}
    with pytest.raises(UserError, match=rf"train\.txt: expected {documents} documents.*got {got}"):
        encode_split(tmp_path / "train.txt", facts, tokenizer, tmp_path / "train.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


def test_a_longer_special_token_that_contains_an_end_of_text_is_rejected(raw: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(build_vocab([], []), [], [END, END + END])
    with pytest.raises(UserError, match=r"got 1 such tokens and none at the end; check tokenizer\.special_tokens"):
        encode_split(raw / "train.txt", FACTS["train"], tokenizer, tmp_path / "train.bin")


def test_a_text_of_the_wrong_size_is_rejected(raw: Path) -> None:
    (raw / "val.txt").write_text(f"longer{END}")
    with pytest.raises(UserError, match=r"val\.txt: expected 16 bytes as in manifest\.json, got 19; make it with"):
        read_text_facts(raw)


def test_a_split_without_documents_is_rejected(raw: Path) -> None:
    (raw / "val.txt").write_text("")
    change(raw / "manifest.json", lambda manifest: manifest["splits"]["val"].update(bytes=0, documents=0))
    with pytest.raises(UserError, match=r"val\.txt: contains no document"):
        read_text_facts(raw)


@pytest.mark.parametrize("name", ["manifest.json", "train.txt"])
def test_the_error_names_a_missing_input_and_the_stage_that_makes_it(raw: Path, name: str) -> None:
    (raw / name).unlink()
    reason = "there is no such file" if name == "manifest.json" else r"cannot be read \(No such file or directory\)"
    with pytest.raises(UserError, match=rf"{name}: {reason}; make it with: dvc repro download"):
        read_text_facts(raw)


def peak_of_encoding(folder: Path, documents: int) -> int:
    """Return the peak memory of writing and opening the tokens of a text, in bytes."""
    path = folder / "train.txt"
    path.write_text(f"the quick brown fox jumps over the lazy dogs, all of them, again and again{END}" * documents)
    facts = {"bytes": path.stat().st_size - 13 * documents, "documents": documents}
    tokenizer = Tokenizer(build_vocab(MERGES, [END]), MERGES, [END])
    tracemalloc.start()
    entry, _ = encode_split(path, facts, tokenizer, folder / "train.bin")
    write_manifest(folder, tokenizer, {"train": entry})
    tokens, _ = open_tokens(folder, "train", tokenizer.hash)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tokens) > 60 * documents
    return peak


def test_memory_does_not_depend_on_the_length_of_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # With more threads, the number of chunks that are processed at the same time would vary.
    monkeypatch.setattr("lm.tokenizer.tokenizer.resolve_num_threads", lambda num_threads, length: 1)
    short = peak_of_encoding(tmp_path, 20_000)
    long = peak_of_encoding(tmp_path, 80_000)
    assert long < short + 2_000_000, f"{short:,} bytes for 1.8 MB of text, {long:,} for 7"
    assert long < 64_000_000


@pytest.fixture
def other(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """The token files of another share: "the cat" and "the"."""
    return encode_texts(tmp_path / "other", {"train": ["the cat"], "val": ["the"]}, tokenizer)


def encode_texts(folder: Path, documents: dict[str, list[str]], tokenizer: Tokenizer) -> Path:
    folder.mkdir()
    splits = {}
    for split, texts in documents.items():
        path = folder / f"{split}.txt"
        path.write_text("".join(text + END for text in texts), newline="")
        facts = {"bytes": len("".join(texts).encode()), "documents": len(texts)}
        splits[split], _ = encode_split(path, facts, tokenizer, folder / f"{split}.bin")
        path.unlink()
    write_manifest(folder, tokenizer, splits)
    return folder


def test_joined_tokens_by_hand(folder: Path, other: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = join_tokens([folder, other], tmp_path / "new/joined")
    tokens, facts = open_tokens(tmp_path / "new/joined", "train", tokenizer.hash)
    first, second = [257, 220, 66, 64, 83, 259, 127, 102, 258, 258, 259, 259], [257, 220, 66, 64, 83, 259]
    assert tokens.tolist() == first + second
    assert facts == {"bytes": 24, "documents": 4, "count": 18, "sha256": facts["sha256"]}
    assert open_tokens(tmp_path / "new/joined", "val", None)[0].tolist() == [64, 198, 198, 259, 257, 259]
    assert manifest == json.loads((tmp_path / "new/joined/manifest.json").read_text())
    names = ["manifest.json", "train.bin", "val.bin"]
    assert sorted(path.name for path in (tmp_path / "new/joined").iterdir()) == names


def test_the_tokens_are_in_the_order_of_the_folders(folder: Path, other: Path, tmp_path: Path) -> None:
    join_tokens([other, folder], tmp_path / "joined")
    assert open_tokens(tmp_path / "joined", "train", None)[0][:7].tolist() == [257, 220, 66, 64, 83, 259, 257]


def test_the_entropy_is_known_if_all_folders_know_it(folder: Path, other: Path, tmp_path: Path) -> None:
    val = join_tokens([folder, other], tmp_path / "partly")["splits"]["val"]
    assert "entropy_bits" not in val
    change(other / "manifest.json", lambda manifest: manifest["splits"]["val"].update(entropy_bits=0.25))
    splits = join_tokens([folder, other], tmp_path / "wholly")["splits"]
    assert splits["val"]["entropy_bits"] == 7.75 and "entropy_bits" not in splits["train"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shares=st.lists(st.lists(st.text("the é\n", max_size=9), min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_joined_shares_equal_the_whole_text_encoded_at_once(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, shares: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("shares")
    shares = [[f"{number}", *texts] for number, texts in enumerate(shares)]  # so that no two shares are equal
    folders = [
        encode_texts(folder / f"{number}", {"train": texts, "val": texts[:1]}, tokenizer)
        for number, texts in enumerate(shares)
    ]
    documents = {"train": [text for texts in shares for text in texts], "val": [texts[0] for texts in shares]}
    whole = encode_texts(folder / "whole", documents, tokenizer)
    join_tokens(folders, folder / "joined")
    for name in ("train.bin", "val.bin"):
        assert (folder / "joined" / name).read_bytes() == (whole / name).read_bytes()
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (folder / "joined", whole)]
    assert manifests[0] == manifests[1]


def test_tokens_of_two_tokenizers_are_not_joined(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    second = Tokenizer(build_vocab(MERGES, [END]), MERGES, [END], "gpt4")
    foreign = encode_texts(tmp_path / "foreign", {"train": ["a"], "val": ["b"]}, second)
    with pytest.raises(UserError) as error:
        join_tokens([folder, foreign], tmp_path / "joined")
    assert str(error.value) == (
        f"{foreign}: expected the tokenizer_hash of {folder}, {tokenizer.hash}, got {second.hash}; "
        "encode all shares with the same copy of data/tokenizer"
    )
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: change(path / "manifest.json", lambda of: of.update(vocab_size=70_000)),
            "expected the vocab_size of",
        ),
        (lambda path: change(path / "manifest.json", lambda of: of.update(dtype="uint32")), "expected the dtype of"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json: there is no such file"),
        (lambda path: (path / "val.bin").unlink(), "val.bin: cannot be read (No such file"),
        (
            lambda path: (path / "val.bin").write_bytes(b"\1\1"),
            "val.bin: expected 4 bytes for 2 tokens of uint16, got 2",
        ),
        (lambda path: (path / "val.bin").write_bytes(b"\1\1\1\0"), "val.bin: changed since it was written"),
        (lambda path: (path / "train.bin").write_bytes(bytes(12)), "train.bin: changed since it was written"),
        (lambda path: shutil.rmtree(path), "manifest.json: there is no such file"),
    ],
)
def test_a_damaged_share_is_reported_before_anything_is_written(
    folder: Path, other: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(other)
    with pytest.raises(UserError) as error:
        join_tokens([folder, other], tmp_path / "joined")
    assert str(error.value).startswith(str(other)) and message in str(error.value)
    assert not (tmp_path / "joined").exists()


def test_an_empty_list_of_folders_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folders of token files to join"):
        join_tokens([], tmp_path / "joined")


def test_a_share_named_twice_is_rejected(folder: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    for again in (folder, folder.parent / "other/../tokens", tmp_path / "copy"):
        with pytest.raises(UserError) as error:
            join_tokens([folder, other, again], tmp_path / "joined")
        assert str(error.value) == f"{again}: has the same train tokens as {folder}; name each share once"
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize("name", ["train.bin", "README.md"])
def test_tokens_are_never_joined_into_a_folder_in_use(folder: Path, other: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / name).write_text("mine")
    with pytest.raises(UserError, match=f"joined/{name}: already exists; choose a new or empty folder"):
        join_tokens([folder, other], tmp_path / "joined")
    assert [(path.name, path.read_text()) for path in (tmp_path / "joined").iterdir()] == [(name, "mine")]


def test_tokens_are_never_joined_over_others(folder: Path, other: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in other.iterdir()}
    for folders in ([folder, other], [folder]):
        with pytest.raises(UserError, match="other: contains token files already; name another folder"):
            join_tokens(folders, other)
    assert {path: path.read_bytes() for path in other.iterdir()} == before


def test_a_full_disk_leaves_no_manifest_and_joining_can_be_repeated(folder: Path, other: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))  # the two train splits have 36 bytes
    try:
        with pytest.raises(UserError, match=r"train\.bin: the disk is full"):
            join_tokens([folder, other], tmp_path / "joined")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "joined").iterdir())
    join_tokens([folder, other], tmp_path / "joined")
    assert len(open_tokens(tmp_path / "joined", "train", None)[0]) == 18


def peak_of_joining(folder: Path, count: int, tokenizer: Tokenizer) -> int:
    """Return the peak memory of joining two splits of `count` tokens, in bytes."""
    shares = []
    for number in range(2):
        share = encode_texts(folder / f"{count}-{number}", {"train": ["a"], "val": ["a"]}, tokenizer)
        tokens = np.full(count, number, dtype="<u2").tobytes()
        (share / "train.bin").write_bytes(tokens)
        entry = {"count": count, "sha256": hashlib.sha256(tokens).hexdigest()}
        change(share / "manifest.json", lambda manifest, entry=entry: manifest["splits"]["train"].update(entry))
        shares.append(share)
    tracemalloc.start()
    join_tokens(shares, folder / f"{count}-joined")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_of_joining_does_not_depend_on_the_size(tmp_path: Path, tokenizer: Tokenizer) -> None:
    short, long = peak_of_joining(tmp_path, 200_000, tokenizer), peak_of_joining(tmp_path, 2_000_000, tokenizer)
    assert long < short + 100_000, f"{short:,} bytes for 0.8 MB of tokens, {long:,} for 8"


def _replacements(value: Any) -> list[Any]:
    """`value` with one part replaced, once for each part and each odd value."""
    odd = [None, True, -1, 1.5, 10**400, "", "\ud800", [], {}, [[1]], {"a\nb": 1}]
    within: list[Any] = []
    if isinstance(value, dict):
        within = [{**value, name: new} for name, old in value.items() for new in _replacements(old)]
    return odd + within


@pytest.mark.parametrize("function", ["open_tokens", "join_tokens", "read_text_facts"])
def test_any_value_replaced_in_a_manifest_is_one_line(
    folder: Path, raw: Path, other: Path, tmp_path: Path, function: str
) -> None:
    actions: dict[str, tuple[Path, Callable[[], object]]] = {
        "open_tokens": (folder, lambda: open_tokens(folder, "train", None)),
        "join_tokens": (folder, lambda: join_tokens([other, folder], tmp_path / "joined")),
        "read_text_facts": (raw, lambda: read_text_facts(raw)),
    }
    damaged, action = actions[function]
    manifest = json.loads((damaged / "manifest.json").read_text())
    for changed in _replacements(manifest):
        (damaged / "manifest.json").write_text(json.dumps(changed))
        shutil.rmtree(tmp_path / "joined", ignore_errors=True)
        try:
            action()
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
