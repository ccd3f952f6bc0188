"""The texts, tokenizers and token ids that the systems work on, written as files for the measuring processes."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from bench.tokenizer.systems import write_files
from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import train_bpe

VOCAB_SIZES = [10_000, 32_000]
GENERATED_VOCAB_SIZE = 2_000  # the grammar has too few words for more
DECODED_TEXTS = ["stories", "chinese"]

_FILES = {
    "stories": ["tinystories_train.txt", "kidstories.txt", "campfire_stories.txt"],
    "all": ["*.txt"],
    "code": ["code_python.txt"],
    "chinese": ["chinese_sanguo.txt"],
}
_WARM_UP_BYTES = 2_000_000
_DECODED_TOKENS = 1_000_000


def read_texts(folder: Path, size: int | None) -> dict[str, str]:
    """Return the texts by name, each cut to about `size` bytes by shortening every file by the same factor.

    Raises:
        UserError: a file is missing or is not UTF-8.
    """
    texts = {}
    for name, patterns in _FILES.items():
        paths = [path for pattern in patterns for path in sorted(folder.glob(pattern)) or [folder / pattern]]
        try:
            files = [path.read_bytes().decode() for path in paths]
        except OSError as error:
            raise UserError(f"--data: {error.filename}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--data: {folder}: a file of the text {name!r} is not UTF-8 ({error})") from error
        share = min(1.0, size / sum(len(file.encode()) for file in files)) if size else 1.0
        texts[name] = "".join([file[: round(share * len(file))] for file in files])
    return texts


def generated_text(seed: int, size: int) -> str:
    """Return generated stories of at least `size` bytes."""

    def documents() -> Iterator[str]:
        length = 0
        for story in stories(seed):
            if length >= size:
                return
            length += len(story.text)
            yield story.text + END_OF_TEXT

    return "".join(documents())


def write_inputs(
    folder: Path, texts: dict[str, str], data: Path | None, patterns: list[str], quick: bool
) -> dict[str, int]:
    """Write the inputs of the measuring processes and return the names of the tokenizers with their vocabulary sizes.

    The files are TEXT.txt and warm_up.txt, and for each tokenizer a folder with its files and the token ids to decode,
    TEXT.npy and warm_up.npy. With each of `patterns`, the tokenizer NAME is also written as NAME/PATTERN.
    """
    texts = texts | {"warm_up": generated_text(0, _WARM_UP_BYTES)}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    tokenizers = {}
    if data:
        files = data / "gpt2" / "vocab.json", data / "gpt2" / "merges.txt"
        tokenizers["gpt2"] = Tokenizer.from_files(*files, [END_OF_TEXT])
    if not (data and quick):
        name, size = ("stories", VOCAB_SIZES[0]) if data else ("generated", GENERATED_VOCAB_SIZE)
        tokenizers["trained"] = Tokenizer(*train_bpe(folder / f"{name}.txt", size, [END_OF_TEXT]), [END_OF_TEXT])
    for merges, tokenizer in list(tokenizers.items()):
        for pattern in patterns:
            name = f"{merges}/{pattern}"
            tokenizers[name] = Tokenizer(tokenizer.vocab, tokenizer.merges, [END_OF_TEXT], pattern)
    for merges, tokenizer in tokenizers.items():
        write_files(tokenizer, folder / merges)
        for name in {"warm_up", "generated", *DECODED_TEXTS} & texts.keys() if "/" not in merges else ():
            ids = list(islice(tokenizer.encode_iterable([texts[name]]), _DECODED_TOKENS))
            while tokenizer.decode(ids[-4:]).endswith("\ufffd"):
                ids.pop()  # the beginning of a character
            np.save(folder / merges / f"{name}.npy", np.array(ids, dtype=np.uint32))
    return {merges: tokenizer.vocab_size for merges, tokenizer in tokenizers.items()}
