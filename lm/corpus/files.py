"""Read documents from local files and URLs: .txt, .txt.gz, .jsonl, .jsonl.gz and .parquet."""

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lm.corpus import web
from lm.corpus.documents import decode, documents, split, split_at_end_of_text
from lm.errors import UserError

CHUNK_BYTES = 1 << 20
EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A local file. `name` is the path or URL that the user gave, and its extension determines the format."""

    name: str
    path: Path
    provenance: dict[str, str | int]


def expand_names(names: list[str], key: str) -> list[str]:
    """Expand the globs in a list of paths, globs and http(s) URLs, without reading or downloading any file.

    The order of the list is kept, the matches of a glob are sorted by name, and duplicates are dropped.

    Raises:
        UserError: If a name matches no file or has an unknown extension. The message calls the list data.`key`.
    """
    expanded = dict.fromkeys(match for name in names for match in ([name] if _is_url(name) else _match(name, key)))
    for name in expanded:
        if _extension(name) not in EXTENSIONS:
            raise UserError(
                f"data.{key}: expected a file name ending in {', '.join(EXTENSIONS)}, got {name}; rename or convert it"
            )
    return list(expanded)


def open_file(name: str, cache: Path) -> TextFile:
    """Return the file at a path or URL. A URL is downloaded unless it is in the cache.

    Raises:
        UserError: If the file is empty or cannot be read, or the download fails.
    """
    if _is_url(name):
        download = web.find_cached(name, cache) or web.download(name, cache)
        provenance: dict[str, str | int] = {"url": name, "size": download.size, "sha256": download.sha256}
        return TextFile(name=name, path=download.path, provenance=provenance)
    path = Path(name)
    try:
        provenance = {"path": name, "size": path.stat().st_size, "sha256": web.checksum(path, hashlib.sha256())}
    except OSError as error:
        raise _read_error(name, error) from error
    if not provenance["size"]:
        raise UserError(f"{name}: the file is empty; choose another one")
    return TextFile(name=name, path=path, provenance=provenance)


def read_documents(file: TextFile, separator: str, text_column: str) -> Iterator[str]:
    """Yield the documents of a file in order.

    In text files, documents are the parts between separators, without the white space around them. In .jsonl and
    .parquet files, they are the values of the text column, unchanged. Both are also split at the end-of-text marker;
    nulls and blank documents are dropped. Memory holds one document at a time, or one row group of a .parquet file.

    Raises:
        UserError: If the file cannot be read or its content does not match its extension. The message says where.
    """
    if _extension(file.name).startswith(".txt"):
        yield from documents(split(_read_text(file), separator, file.name))
        return
    read_values = _parquet_values if _extension(file.name) == ".parquet" else _jsonl_values
    for value in read_values(file, text_column):
        yield from split_at_end_of_text(value)


def held_out(document: str, seed: int, fraction: float) -> bool:
    """Whether a document belongs to the validation split, which holds out about `fraction` of all documents.

    The decision depends only on a hash of the seed and the text, and not on the other documents or their order. Equal
    documents therefore end up in the same split.
    """
    digest = hashlib.sha256(f"{seed}\n{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _match(name: str, key: str) -> list[str]:
    """Return the files that a path or glob matches. A path that exists is never treated as a glob."""
    path = Path(name)
    if path.is_file():
        return [name]
    if path.is_dir():
        raise UserError(f"data.{key}: {name} is a folder; list its files, for example {path / '*.txt'}")
    if not glob.has_magic(name):
        raise UserError(f"data.{key}: there is no file {name}; check the path, which is relative to the project folder")
    matches = sorted(match for match in glob.glob(name, recursive=True) if Path(match).is_file())
    if not matches:
        raise UserError(f"data.{key}: no file matches {name}; check the glob, which is relative to the project folder")
    return matches


def _extension(name: str) -> str:
    suffixes = PurePosixPath(web.file_name(name) if _is_url(name) else name).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _read_text(file: TextFile) -> Iterator[str]:
    return decode(_read_chunks(file), file.name)


def _read_chunks(file: TextFile) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed if its name ends in .gz."""
    try:
        with gzip.open(file.path) if file.name.endswith(".gz") else file.path.open("rb") as stream:
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
            raise UserError(f"{where}: not valid JSON ({error}); fix or delete the line") from error
        if not isinstance(row, dict) or text_column not in row:
            keys = ", ".join(row) if isinstance(row, dict) else "none"
            raise UserError(f"{where}: has no key {text_column!r}; set data.text_column to one of its keys: {keys}")
        value = row[text_column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(
                f"{where}: expected text in {text_column!r}, got {json.dumps(value)[:40]}; set data.text_column"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:  # such as \ud83d without \ude00
            raise UserError(f"{where}: {text_column!r} has an unpaired surrogate; fix or delete the line") from error
        yield value


def _parquet_values(file: TextFile, text_column: str) -> Iterator[str]:
    import pyarrow  # slow to import, and only this format needs it
    import pyarrow.parquet
    from pyarrow import types

    try:
        with pyarrow.parquet.ParquetFile(file.path, pre_buffer=False) as table:
            schema = table.schema_arrow
            if text_column not in schema.names:
                columns = ", ".join(schema.names)
                raise UserError(f"{file.name}: has no column {text_column!r}; set data.text_column to one of {columns}")
            kind = schema.field(text_column).type
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                raise UserError(
                    f"{file.name}: expected text in column {text_column!r}, got {kind}; set data.text_column"
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
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file.name}: not a complete Parquet file ({error}); create or download it again") from error
    except OSError as error:
        raise _read_error(file.name, error) from error


def _read_error(name: str, error: OSError) -> UserError:
    return UserError(f"{name}: cannot be read ({error.strerror or error}); check the file and its permissions")
