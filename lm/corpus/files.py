"""Read documents from local files and URLs: .txt, .txt.gz, .jsonl, .jsonl.gz and .parquet."""

import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lm.corpus import web
from lm.corpus.content import HEAD_BYTES, html_error, is_gzip, is_html, is_lfs_pointer
from lm.corpus.documents import decode, documents, normalize, split, split_at_end_of_text
from lm.corpus.urls import file_name, is_url, redact
from lm.errors import UserError, quote

CHUNK_BYTES = 1 << 20
EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
UNNAMED_GZIP = "compressed with gzip, although its name does not say so"
LFS_POINTER = "a Git LFS pointer, which stands for a file that was not downloaded"


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A local file.

    `name` is the path or URL that the user gave, without a password, and its extension determines the format.
    """

    name: str
    path: Path
    provenance: dict[str, str | int]


def expand_names(names: list[str], key: str) -> list[str]:
    """Expand the globs in a list of paths, globs and http(s) URLs, without reading or downloading any file.

    The order of the list is kept, the matches of a glob are sorted by name, and duplicates are dropped.

    Raises:
        UserError: If a name matches no file or has an unknown extension. The message calls the list data.`key`.
    """
    expanded = dict.fromkeys(match for name in names for match in ([name] if is_url(name) else _match(name, key)))
    for name in expanded:
        if name != name.encode(errors="ignore").decode():  # the manifest, which records the name, could not be written
            raise UserError(f"data.{key}: the name of the file {name} is not UTF-8 text; rename it")
        if _extension(name) not in EXTENSIONS:
            raise UserError(
                f"data.{key}: expected a file name ending in {', '.join(EXTENSIONS)}, got {redact(name)}; "
                "rename or convert it"
            )
    return list(expanded)


def open_url(url: str, cache: Path) -> TextFile:
    """Return the file at a URL, which is downloaded unless it is in the cache.

    Raises:
        UserError: If the file is empty, the download fails, or the content is not what the name says: a Git LFS
            pointer, gzip without .gz, or an HTML page.
    """
    download = web.find_cached(url, cache) or web.download(url, cache)
    shown, head = redact(url), _read_head(download.path)
    problem = None
    if is_html(head):
        problem = html_error(shown)
    elif is_lfs_pointer(head):
        problem = UserError(f"{shown}: {LFS_POINTER}; use the URL of the file itself, or `git lfs pull` in a clone")
    elif is_gzip(head) and not _is_compressed(url):
        problem = UserError(f"{shown}: {UNNAMED_GZIP}; download the file, add .gz to its name, and list its path")
    if problem:
        download.path.unlink()  # so that the next run downloads it again
        raise problem
    return TextFile(
        name=shown,
        path=download.path,
        provenance={"url": shown, "size": download.size, "sha256": download.sha256},
    )


def open_path(name: str, path: Path) -> TextFile:
    """Return the file at `path`, which the user calls `name`.

    Raises:
        UserError: If the file is empty or cannot be read, or the content is not what the name says: a Git LFS pointer,
            or gzip without .gz.
    """
    try:
        size, sha256 = path.stat().st_size, web.checksum(path, hashlib.sha256())
        head = _read_head(path)
    except OSError as error:
        raise _read_error(name, error) from error
    if not head:
        raise UserError(f"{name}: the file is empty; choose another one")
    if is_lfs_pointer(head):
        raise UserError(f"{name}: {LFS_POINTER}; run `git lfs pull` in its repository")
    if is_gzip(head) and not _is_compressed(name):
        raise UserError(f"{name}: {UNNAMED_GZIP}; add .gz to its name")
    return TextFile(name=name, path=path, provenance={"path": name, "size": size, "sha256": sha256})


def read_documents(
    file: TextFile, separator: str, text_column: str, on_missing: Callable[[str], None] = lambda name: None
) -> Iterator[str]:
    """Yield the documents of a file in order.

    In text files, documents are the parts between separators, without the white space around them. In .jsonl and
    .parquet files, they are the values of the text column. Both are also normalized (`lm.corpus.documents`) and split
    at the end-of-text marker; nulls and blank documents are dropped. Memory holds two documents at a time, or one row
    group of a .parquet file.

    Args:
        file: The file.
        separator: The text between two documents of a text file.
        text_column: The column of a .jsonl or .parquet file.
        on_missing: Called with the name of a text file in which the separator does not occur, before its only document.

    Raises:
        UserError: If the file cannot be read or its content does not match its extension. The message says where.
    """
    if _extension(file.name).startswith(".txt"):
        pieces = split(_read_text(file), normalize(separator), file.name)
        beginning = list(itertools.islice(pieces, 2))
        if len(beginning) == 1:
            on_missing(file.name)
        yield from documents(itertools.chain(beginning, pieces))
        return
    read_values = _parquet_values if _extension(file.name) == ".parquet" else _jsonl_values
    for value in read_values(file, text_column):
        yield from split_at_end_of_text(normalize(value))


def held_out(document: str, seed: int, fraction: float) -> bool:
    """Whether a document belongs to the validation split, which holds out about `fraction` of all documents.

    The decision depends only on a hash of the seed and the text, and not on the other documents or their order. Equal
    documents, and those that differ only in the white space around them, therefore end up in the same split.
    """
    digest = hashlib.sha256(f"{seed}\n{document.strip()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _match(name: str, key: str) -> list[str]:
    """Return the files that a path or glob matches. A path that exists is never treated as a glob."""
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        if re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
            raise UserError(
                f"data.{key}: expected a path, glob or http(s) URL, got {redact(name)}; download the file and list its "
                "path"
            ) from error
        if glob.has_magic(name):
            return _match_glob(name, key)
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise _read_error(f"data.{key}: {name}", error) from error
        raise UserError(
            f"data.{key}: there is no file {name}; check the path, which is relative to the project folder"
        ) from error
    if stat.S_ISDIR(mode):
        raise UserError(f"data.{key}: {name} is a folder; list its files, for example {Path(name) / '*.txt'}")
    if not stat.S_ISREG(mode):
        raise UserError(f"data.{key}: {name} is a device or pipe; write its content to a file and list that")
    return [name]


def _match_glob(name: str, key: str) -> list[str]:
    matches = sorted(match for match in glob.glob(name, recursive=True) if os.path.isfile(match))
    if matches:
        return matches
    problem = f"data.{key}: no file matches {name}"
    folder = name  # the folders before the first wildcard
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    try:
        os.scandir(os.path.join(folder, ".")).close()  # glob ignores errors
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(
            f"{problem}: the folder {folder or '.'} cannot be read ({error.strerror}); check its permissions"
        ) from error
    raise UserError(f"{problem}; check the glob, which is relative to the project folder")


def _extension(name: str) -> str:
    suffixes = PurePosixPath(file_name(name) if is_url(name) else name).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _is_compressed(name: str) -> bool:
    return _extension(name).endswith(".gz")


def _read_text(file: TextFile) -> Iterator[str]:
    return decode(_read_chunks(file), file.name)


def _read_chunks(file: TextFile) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed if its name ends in .gz."""
    try:
        with gzip.open(file.path) if _is_compressed(file.name) else file.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file.name}: not a complete gzip file ({error}); create or download it again") from error
    except OSError as error:
        raise _read_error(file.name, error) from error


def _jsonl_values(file: TextFile, text_column: str) -> Iterator[str]:
    for line_number, line in enumerate(split(_read_text(file), "\n", file.name), start=1):
        if not line or line.isspace():
            continue
        where = f"{file.name}:{line_number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({_json_mistake(error)}); fix or delete the line") from error
        if not isinstance(row, dict) or text_column not in row:
            keys = list_names(row) if isinstance(row, dict) else "none"
            raise UserError(
                f"{where}: has no key {quote(text_column)}; set data.text_column to one of its keys: {keys}"
            )
        value = row[text_column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(
                f"{where}: expected text in {quote(text_column)}, got {json.dumps(value)[:40]}; set data.text_column"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:  # such as \ud83d without \ude00
            raise UserError(
                f"{where}: {quote(text_column)} has an unpaired surrogate; fix or delete the line"
            ) from error
        yield value


def _json_mistake(error: ValueError | RecursionError) -> str:
    match error:
        case json.JSONDecodeError():
            return f"{error.msg}, at column {error.colno}"
        case RecursionError():
            return "nested too deeply"
        case _:
            return "a number with thousands of digits"


def _parquet_values(file: TextFile, text_column: str) -> Iterator[str]:
    import pyarrow  # slow to import, and only this format needs it
    import pyarrow.parquet
    from pyarrow import types

    try:
        with pyarrow.parquet.ParquetFile(file.path, pre_buffer=False) as table:
            schema = table.schema_arrow
            counts = Counter(schema.names)
            if (count := counts[text_column]) != 1:
                problem = f"has {count or 'no'} column{'s' * (count > 1)} {quote(text_column)}"
                others = [name for name in counts if name != text_column]
                if not others:
                    raise UserError(
                        f"{file.name}: {problem} and no other; write the file again with one column of this name"
                    )
                raise UserError(f"{file.name}: {problem}; set data.text_column to one of {list_names(others)}")
            kind = schema.field(text_column).type
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                raise UserError(
                    f"{file.name}: expected text in column {quote(text_column)}, got {quote(str(kind))[1:-1]}; "
                    "set data.text_column"
                )
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[text_column]):
                for value in batch.column(0):
                    row += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        raise UserError(f"{file.name}: row {row} is not UTF-8 text; fix or delete it") from error
                    if text is not None:
                        yield text
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _read_error(file.name, error) from error
        raise parquet_error(
            f"{file.name}: not a complete Parquet file", error, "create or download it again"
        ) from error


def parquet_error(problem: str, error: Exception, advice: str) -> UserError:
    """Return the UserError for an exception of pyarrow, whose message may have several lines."""
    if isinstance(error, MemoryError):
        problem, advice = problem.partition(":")[0] + ": not enough memory", "use files with smaller row groups"
    reason = quote(" ".join(str(error).split()), limit=200)[1:-1]
    return UserError(f"{problem} ({reason}); {advice}")


def list_names(names: Collection[str]) -> str:
    """List the first few keys of a row or columns of a table for a message."""
    listed = ", ".join(quote(name, limit=40)[1:-1] for name in itertools.islice(names, 10))
    return (listed or "none") + f" and {len(names) - 10:,} more" * (len(names) > 10)


def _read_error(name: str, error: OSError) -> UserError:
    return UserError(f"{name}: cannot be read ({error.strerror or error}); check the file and its permissions")
