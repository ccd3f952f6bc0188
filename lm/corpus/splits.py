"""Write the documents of a split to a text file, such as data/raw/train.txt, and describe it for the manifest.

Every document is followed by END_OF_TEXT and nothing else. The number of documents is therefore the number of markers,
and the number of bytes of text is the size of the file minus 13 bytes per document.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm.atomic import atomic_write
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError


def write_split(documents: Iterable[str], path: Path, max_bytes: int, max_documents: int) -> dict[str, Any]:
    """Write documents until a limit is reached, and return the split's entry in the manifest.

    Args:
        documents: The documents. Those after the limit are not read, so another split can continue with them.
        path: The text file. It is written atomically.
        max_bytes: Bytes of UTF-8 text, without markers. The document that reaches the limit is the last one. 0 means
            no limit.
        max_documents: The number of documents. 0 means no limit.

    Raises:
        UserError: If there are no documents, the file cannot be written, or reading the documents fails.

    >>> write_split(["One.", "Two.", "Three."], Path("train.txt"), 5, 0)
    {'bytes': 8, 'documents': 2, 'sha256': '...'}
    """
    marker = END_OF_TEXT.encode()
    size, count, sha256 = 0, 0, hashlib.sha256()
    with (
        atomic_write(path) as file,
        tqdm(desc=path.name, total=max_bytes or None, unit="B", unit_scale=True, delay=1, disable=None) as bar,
    ):
        for document in documents:
            text = document.encode()
            file.write(text)
            file.write(marker)
            sha256.update(text)
            sha256.update(marker)
            size += len(text)
            count += 1
            bar.update(len(text))
            if 0 < max_bytes <= size or 0 < max_documents <= count:
                break
        if not count:
            raise UserError(
                f"{path}: the source has no documents for this split; with data.source files, check data.separator and "
                "data.text_column, and increase data.val_fraction or set data.val_files"
            )
    return {"bytes": size, "documents": count, "sha256": sha256.hexdigest()}
