"""Documents -> data/raw: train.txt and val.txt, and the manifest.json that says what is in them.

Every document is followed at once by END_OF_TEXT and nothing else, so the number of documents is the number of
markers, and the bytes of text are the bytes of the file less 13 a document.
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
    """Write the shortest run of whole documents that reaches a limit; returns the split's entry in the manifest.

    Args:
        documents: read only as far as needed, so that another split can go on from there.
        path: the text file, which appears under its name only when it is whole.
        max_bytes: of text in UTF-8, markers apart; the document that reaches it is the last. 0: no limit.
        max_documents: 0: no limit.

    Raises:
        UserError: there is no document, the file cannot be written, or reading the documents fails.

    >>> write_split(["One.", "Two.", "Three."], Path("train.txt"), 5, 0)
    {'bytes': 8, 'documents': 2, 'sha256': '...'}
    """
    marker = END_OF_TEXT.encode()
    size, count, sha256 = 0, 0, hashlib.sha256()
    with (
        atomic_write(path) as file,
        tqdm(desc=path.name, total=max_bytes or None, unit="B", unit_scale=True, delay=1) as bar,
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
                f"{path}: the source holds no document for it; with data.source files check data.separator and "
                "data.text_column, and raise data.val_fraction or name data.val_files"
            )
    return {"bytes": size, "documents": count, "sha256": sha256.hexdigest()}
