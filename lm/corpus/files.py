"""Documents of local files and web addresses: .txt, .jsonl and .parquet, the first two also compressed as .gz."""

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lm.corpus import web
from lm.corpus.documents import decode, documents, split, without_marker
from lm.errors import UserError

CHUNK_BYTES = 1 << 20
ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file on this machine; `name` is what the user calls it, a path or an address, and its ending the format."""

    name: str
    path: Path
    provenance: dict[str, str | int]


def find_names(names: list[str], key: str) -> list[str]:
    """The paths and http(s) addresses that paths, globs and addresses stand for, in the order given; a glob's by name.

    A file that is named twice is taken once. Nothing is read or downloaded yet.

    Raises:
        UserError: a name that stands for no file, or an unknown ending; `key` is the parameter that it names.
    """
    found = dict.fromkeys(
        match for name in names for match in ([name] if _is_address(name) else _local_paths(name, key))
    )
    for name in found:
        if _ending(name) not in ENDINGS:
            raise UserError(f"data.{key}: {name} ends in none of {', '.join(ENDINGS)}; rename or convert it")
    return list(found)


def open_file(name: str, cache: Path) -> TextFile:
    """The file at a path or address, downloaded into the cache if need be.

    Raises:
        UserError: the file is empty or cannot be read, or a download fails.
    """
    if _is_address(name):
        download = web.cached(name, cache) or web.download(name, cache)
        provenance: dict[str, str | int] = {"address": name, "size": download.size, "sha256": download.sha256}
        return TextFile(name=name, path=download.path, provenance=provenance)
    path = Path(name)
    try:
        provenance = {"path": name, "size": path.stat().st_size, "sha256": web.checksum(path, hashlib.sha256())}
    except OSError as error:
        raise _unreadable(name, error) from error
    if not provenance["size"]:
        raise UserError(f"{name}: the file is empty; name another one")
    return TextFile(name=name, path=path, provenance=provenance)


def read_documents(file: TextFile, separator: str, text_column: str) -> Iterator[str]:
    """The documents in the file's order: parts between separators, or the values of the text column.

    Parts lose the white space around them, which is layout; values stay as they are. Both are split where they
    contain the end-of-text marker, and blank documents and nulls are dropped. Memory holds a document
    (.parquet: a row group).

    Raises:
        UserError: the file cannot be read or is not what its ending says; the message says where.
    """
    if _ending(file.name).startswith(".txt"):
        yield from documents(split(_text(file), separator, file.name))
        return
    read_values = _parquet_values if _ending(file.name) == ".parquet" else _jsonl_values
    for value in read_values(file, text_column):
        yield from without_marker(value)


def held_out(document: str, seed: int, fraction: float) -> bool:
    """Whether a document belongs to val: a draw of probability `fraction` by the hash of seed and text.

    It depends neither on the order of the documents nor on the others, and equal documents stay together.
    """
    digest = hashlib.sha256(f"{seed}\n{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _local_paths(name: str, key: str) -> list[str]:
    path = Path(name)
    if path.is_file():
        return [name]
    if path.is_dir():
        raise UserError(f"data.{key}: {name} is a folder; name its files, for example {path / '*.txt'}")
    if not glob.has_magic(name):
        raise UserError(f"data.{key}: there is no file {name}; paths begin at the project's folder")
    matches = sorted(match for match in glob.glob(name, recursive=True) if Path(match).is_file())
    if not matches:
        raise UserError(f"data.{key}: no file matches {name}; paths begin at the project's folder")
    return matches


def _ending(name: str) -> str:
    suffixes = PurePosixPath(web.file_name(name) if _is_address(name) else name).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _text(file: TextFile) -> Iterator[str]:
    return decode(_chunks(file), file.name)


def _chunks(file: TextFile) -> Iterator[bytes]:
    """The file's bytes, decompressed."""
    try:
        with gzip.open(file.path) if file.name.endswith(".gz") else file.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file.name}: not a whole gzip file ({error}); make or download it anew") from error
    except OSError as error:
        raise _unreadable(file.name, error) from error


def _jsonl_values(file: TextFile, text_column: str) -> Iterator[str]:
    for number, line in enumerate(split(_text(file), "\n", file.name), start=1):
        if not line or line.isspace():
            continue
        where = f"{file.name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a JSON value ({error}); mend or delete the line") from error
        if not isinstance(row, dict) or text_column not in row:
            keys = ", ".join(row) if isinstance(row, dict) else "none"
            raise UserError(f"{where}: has no key {text_column!r}; set data.text_column to one of its keys: {keys}")
        value = row[text_column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(f"{where}: {text_column!r} is not text but {json.dumps(value)[:40]}; set data.text_column")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a \ud83d\ude00 pair
            raise UserError(f"{where}: {text_column!r} holds half a surrogate pair; mend or delete the line") from error
        yield value


def _parquet_values(file: TextFile, text_column: str) -> Iterator[str]:
    import pyarrow  # only this format needs it
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
                raise UserError(f"{file.name}: the column {text_column!r} holds {kind}; set data.text_column to text")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[text_column]):
                for value in batch.column(0):
                    row += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        raise UserError(f"{file.name}: row {row} is not UTF-8 text; mend or delete it") from error
                    if text is not None:
                        yield text
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file.name}: not a whole parquet file ({error}); make or download it anew") from error
    except OSError as error:
        raise _unreadable(file.name, error) from error


def _unreadable(name: str, error: OSError) -> UserError:
    return UserError(f"{name}: cannot be read ({error.strerror or error}); check the file and its permissions")
