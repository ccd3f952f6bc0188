from pathlib import Path

import pytest

from lm.errors import UserError
from lm.tokenizer import reference
from lm.tokenizer.training.bpe import train_bpe

END = "<|endoftext|>"


def test_a_file_gives_the_vocabulary_and_merges_of_the_reference(tmp_path: Path, text: str) -> None:
    part = text[:30_000]
    path = tmp_path / "train.txt"
    path.write_bytes(part.encode())
    vocab, merges = train_bpe(str(path), 400, [END, "<|pad|>"])
    assert (vocab, merges) == reference.train(part, 400, [END, "<|pad|>"])
    assert list(vocab) == list(range(400)) and len(merges) == 400 - 258
    assert (vocab[0], vocab[398], vocab[399]) == (b"!", END.encode(), b"<|pad|>")
    assert not any(b"<|" in left + right for left, right in merges)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_compiled_path_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, num_threads: int
) -> None:
    monkeypatch.setattr("lm.tokenizer.text.fast.chunks._LENGTH_PER_THREAD", 1)
    path = tmp_path / "train.txt"
    path.write_bytes(text.encode())
    plain = train_bpe(path, 500, [END, "<|pad|>"], num_threads=num_threads)
    monkeypatch.setattr("lm.tokenizer.training.bpe._MIN_BYTES_FOR_FAST", 0)
    assert train_bpe(path, 500, [END, "<|pad|>"], num_threads=num_threads) == plain


def test_text_that_runs_out_of_pairs_gives_fewer_tokens(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"aa b{END}aa")
    vocab, merges = train_bpe(path, 1000, [END])
    assert merges == [(b"a", b"a"), (b" ", b"b")] and len(vocab) == 259
    path.write_text("")
    assert len(train_bpe(path, 1000, [END])[0]) == 257


@pytest.mark.parametrize(
    ("vocab_size", "special_tokens", "message"),
    [
        (256, [END], r"tokenizer\.vocab_size: expected at least 257 \(256 bytes and 1 special\), got 256"),
        (300, ["\n"], r"tokenizer\.special_tokens: expected two bytes or more, got '\\n'"),
    ],
)
def test_invalid_arguments_are_rejected(
    tmp_path: Path, vocab_size: int, special_tokens: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_bpe(tmp_path / "never read.txt", vocab_size, special_tokens)
