"""Files of a data set on the Hugging Face hub, at one commit.

`pin` asks the hub once which commit a revision stands for and records the answer in the cache folder, so a resumed or
later run reads the same bytes though `main` has moved on; delete the cache folder to follow it. `fetch` downloads a
whole file and checks it against the size and checksum in the hub's own reply. `stream_parquet` reads parquet files
without downloading them, so a sample of a large repository costs no more than the parts that are read; the commit
alone fixes their content.

huggingface_hub speaks the protocol (HF_ENDPOINT, HF_TOKEN and its stored login are its own); the bytes of `fetch` are
moved by `lm.corpus.web`, since hf_hub_download neither resumes across processes nor checks checksums.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from lm.atomic import atomic_write
from lm.corpus import web
from lm.corpus.files import TextFile
from lm.errors import UserError

TIMEOUT_SECONDS = 10.0
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A data set repository at one commit, and the names of its files."""

    repository: str
    commit: str
    files: list[str]

    def address(self, name: str) -> str:
        """A file's address, whatever the endpoint: hf://datasets/REPOSITORY@COMMIT/NAME."""
        return f"hf://datasets/{self.repository}@{self.commit}/{name}"


def pin(repository: str, revision: str, cache: Path) -> Snapshot:
    """The commit that `revision` (a branch, tag or commit) stood for when this cache first saw it.

    Raises:
        UserError: the hub cannot be reached, or has no such repository or revision for this user.
    """
    key = hashlib.sha256(f"{constants.ENDPOINT} {repository} {revision}".encode()).hexdigest()[:16]
    path = cache / f"{key}-{re.sub(r'[^A-Za-z0-9._-]', '_', repository)[-80:]}.pin.json"
    try:
        return Snapshot(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        pass  # nothing, or nothing readable, was recorded
    with _clear_errors(f"{repository}@{revision}"):
        info = HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise UserError(f"{constants.ENDPOINT}: gave no commit for {repository}@{revision}; check HF_ENDPOINT")
    names = sorted(file.rfilename for file in info.siblings or [])
    snapshot = Snapshot(repository=repository, commit=info.sha, files=names)
    with atomic_write(path) as file:
        file.write(json.dumps(asdict(snapshot), indent=2).encode() + b"\n")
    return snapshot


def fetch(snapshot: Snapshot, name: str, cache: Path) -> TextFile:
    """The file `name`, downloaded into the cache and equal in size and checksum to what the hub says it is.

    Raises:
        UserError: as `web.download`; also no such file in the repository, or no permission to read it.
    """
    url = hf_hub_url(snapshot.repository, name, repo_type="dataset", revision=snapshot.commit)
    download = web.cached(url, cache)
    if download is None:
        with _clear_errors(snapshot.address(name)):
            metadata = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
        # Large files: the sha256. Small files: the sha1 of the git blob.
        if metadata.size is None or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", metadata.etag or ""):
            raise UserError(f"{url}: the server gave no size and checksum, as the hub does; check HF_ENDPOINT")
        download = web.download(url, cache, size=metadata.size, digest=metadata.etag, headers=build_hf_headers())
    provenance = {"address": snapshot.address(name), "revision": snapshot.commit}
    return TextFile(
        name=snapshot.address(name),
        path=download.path,
        provenance={**provenance, "size": download.size, "sha256": download.sha256},
    )


def stream_parquet(snapshot: Snapshot, column: str, cache: Path) -> Iterator[str]:
    """The values of a text column in all parquet files of the snapshot, file after file by name; nulls passed over.

    A connection that breaks off is taken up again by huggingface_hub; a killed process starts from the first value.

    Raises:
        UserError: no such column, a column of something else than text, or the hub cannot be reached.
    """
    import datasets  # takes most of a second, and only this function needs it
    import pyarrow

    # huggingface_hub below it has by then tried for 20 s; datasets would go on for minutes.
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    files = [snapshot.address(name) for name in snapshot.files if name.endswith(".parquet")]
    with _clear_errors(snapshot.repository):
        try:
            table = datasets.load_dataset(
                "parquet", data_files=files, split="train", streaming=True, cache_dir=str(cache / "datasets")
            )
            if column not in table.features:
                columns = ", ".join(table.features)
                raise UserError(f"{files[0]}: has no column {column!r}; set data.text_column to one of {columns}")
            kind = getattr(table.features[column], "dtype", "nested values")
            if kind not in ("string", "large_string"):
                raise UserError(f"{files[0]}: the column {column!r} holds {kind}; set data.text_column to one of text")
            for row in table.select_columns(column):
                if row[column] is not None:
                    yield row[column]
        except pyarrow.ArrowInvalid as error:
            raise UserError(
                f"{snapshot.repository}: not whole parquet files ({error}); name another repository"
            ) from error
        except (ConnectionError, FileNotFoundError) as error:
            raise web.unreachable(snapshot.repository, error) from error


def parquet_provenance(snapshot: Snapshot) -> list[dict[str, str | int]]:
    """Address, revision, size and sha256 of each parquet file of the snapshot, by name."""
    with _clear_errors(snapshot.repository):
        entries = list(
            HfApi().list_repo_tree(snapshot.repository, revision=snapshot.commit, recursive=True, repo_type="dataset")
        )
    files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(".parquet")]
    return [
        {
            "address": snapshot.address(file.path),
            "revision": snapshot.commit,
            "size": file.size,
            **({"sha256": file.lfs.sha256} if file.lfs else {}),
        }
        for file in sorted(files, key=lambda file: file.path)
    ]


@contextmanager
def _clear_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises about `what` into one line that says what to do."""
    hub = constants.ENDPOINT
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{what}: HF_HUB_OFFLINE is set; unset it, or set data.source to files or stories, which need no hub"
        ) from error
    except GatedRepoError as error:
        raise UserError(f"{what}: access is given on request; ask on its page at {hub}, then {LOG_IN}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{what}: no such data set at {hub}, or a private one; check the name, or {LOG_IN}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: no such branch, tag or commit at {hub}; check data.revision") from error
    except EntryNotFoundError as error:
        raise UserError(f"{what}: no such file at {hub}; check data.repository and data.revision") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = LOG_IN if status in (401, 403) else "try again later"
        raise UserError(f"{what}: {hub} answered {status} {error.response.reason_phrase}; {advice}") from error
    except HTTPError as error:
        raise web.unreachable(hub, error) from error
    except HFValidationError as error:
        raise UserError(f"{what}: not the name of a data set; expected OWNER/NAME") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{hub}: did not answer as the hub does; check HF_ENDPOINT and the network") from error
