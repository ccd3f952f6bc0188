"""Read the files of a dataset on the Hugging Face hub at a fixed commit.

`pin` asks the hub once which commit a revision points to and records the answer in the cache folder. Later runs read
the same commit even if `main` has moved on; delete the cache folder to get the new one. `fetch` downloads a complete
file and verifies its size and checksum against those that the hub reports. `stream_parquet` reads Parquet files without
downloading them completely, so a sample of a large repository transfers only the parts that are read.

Requests for metadata go through huggingface_hub, which reads HF_ENDPOINT, HF_TOKEN and the stored login. `fetch`
downloads with `lm.corpus.web`, because hf_hub_download neither resumes in another process nor verifies checksums.
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

from lm.atomic import write_json
from lm.corpus import web
from lm.corpus.files import TextFile, list_names, parquet_error
from lm.corpus.transfer import unreachable_error
from lm.corpus.urls import redact
from lm.errors import UserError, quote
from lm.schema import read_bytes, validate

TIMEOUT_SECONDS = 10.0
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A dataset repository at one commit, and the names of its files."""

    repository: str
    commit: str
    files: list[str]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise ValueError(f"commit: expected 40 hexadecimal digits, got {quote(self.commit)}")

    def url(self, name: str) -> str:
        """Return the URL of a file, which does not depend on HF_ENDPOINT: hf://datasets/REPOSITORY@COMMIT/NAME."""
        return f"hf://datasets/{self.repository}@{self.commit}/{name}"


@dataclass(frozen=True, kw_only=True)
class _RepositoryFile:
    path: str
    size: int
    sha256: str | None


def pin(repository: str, revision: str, cache: Path) -> Snapshot:
    """Return the repository at the commit that `revision`, a branch, tag or commit, points to.

    The cache keeps the answer of the first call, and later calls return it without a request.

    Raises:
        UserError: If the hub cannot be reached, or the repository or revision does not exist or is not accessible.
    """
    key = hashlib.sha256(f"{constants.ENDPOINT} {repository} {revision}".encode()).hexdigest()[:16]
    path = cache / f"{key}-{re.sub(r'[^A-Za-z0-9._-]', '_', repository)[-80:]}.pin.json"
    if path.exists():
        try:
            return validate(Snapshot, json.loads(read_bytes(path, "run again")))
        except (ValueError, RecursionError):
            pass  # the record is damaged, or by another version of this program
    with _translate_hub_errors(f"{repository}@{revision}"):
        info = HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
        names = sorted(file.rfilename for file in info.siblings or [])
        snapshot = validate(Snapshot, {"repository": repository, "commit": info.sha, "files": names})
    write_json(path, asdict(snapshot))
    return snapshot


def fetch(snapshot: Snapshot, name: str, cache: Path) -> TextFile:
    """Return the file `name`. It is downloaded unless it is in the cache, and its size and checksum are verified.

    Raises:
        UserError: If the repository has no such file, access is denied, or `web.download` fails.
    """
    url = hf_hub_url(snapshot.repository, name, repo_type="dataset", revision=snapshot.commit)
    download = web.find_cached(url, cache)
    if download is None:
        with _translate_hub_errors(snapshot.url(name)):
            metadata = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
        # The ETag is the sha256 of a large file and the sha1 of the git blob of a small one.
        size, digest = metadata.size, metadata.etag or ""
        if size is None or size < 0 or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", digest):
            raise UserError(
                f"{redact(url)}: the server reported no size and checksum, unlike the hub; check HF_ENDPOINT"
            )
        download = web.download(url, cache, size=size, digest=digest, headers=build_hf_headers())
    provenance = {"url": snapshot.url(name), "revision": snapshot.commit}
    return TextFile(
        name=snapshot.url(name),
        path=download.path,
        provenance={**provenance, "size": download.size, "sha256": download.sha256},
    )


def stream_parquet(snapshot: Snapshot, name: str, column: str, cache: Path) -> Iterator[str]:
    """Yield the values of a text column in a Parquet file of the snapshot, without nulls.

    huggingface_hub resumes lost connections. After the process is killed, the next one starts from the first value.

    Raises:
        UserError: If there is no such column, it does not contain text, or the hub cannot be reached.
    """
    import datasets  # slow to import, and only this function needs it
    import pyarrow

    # By the time datasets sees an error, huggingface_hub has retried for 20 s; datasets would retry for minutes.
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    url = snapshot.url(name)
    with _translate_hub_errors(snapshot.repository):
        try:
            table = datasets.load_dataset(
                "parquet", data_files=[url], split="train", streaming=True, cache_dir=str(cache / "datasets")
            )
            if column not in table.features:
                raise UserError(
                    f"{url}: has no column {quote(column)}; set data.text_column to one of {list_names(table.features)}"
                )
            kind = getattr(table.features[column], "dtype", "nested values")
            if kind not in ("string", "large_string"):
                raise UserError(f"{url}: expected text in column {quote(column)}, got {kind}; set data.text_column")
            for row in table.select_columns(column):
                if row[column] is not None:
                    yield row[column]
        except (ConnectionError, FileNotFoundError) as error:
            raise unreachable_error(snapshot.repository, error) from error
        except HfHubHTTPError:
            raise  # an OSError too
        except UnicodeDecodeError as error:
            raise UserError(
                f"{snapshot.repository}: column {quote(column)} has a text that is not UTF-8; choose another repository"
            ) from error
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            problem = f"{snapshot.repository}: not valid Parquet files"
            raise parquet_error(problem, error, "choose another repository") from error


def parquet_provenance(snapshot: Snapshot) -> list[dict[str, str | int]]:
    """Return the URL, revision, size and, for large files, sha256 of each Parquet file of the snapshot, by name."""
    with _translate_hub_errors(snapshot.repository):
        entries = HfApi().list_repo_tree(
            snapshot.repository, revision=snapshot.commit, recursive=True, repo_type="dataset"
        )
        reported = [
            {"path": entry.path, "size": entry.size, "sha256": entry.lfs.sha256 if entry.lfs else None}
            for entry in entries
            if isinstance(entry, RepoFile)
        ]
        files = validate(list[_RepositoryFile], reported)
    return [
        {
            "url": snapshot.url(file.path),
            "revision": snapshot.commit,
            "size": file.size,
            **({"sha256": file.sha256} if file.sha256 else {}),
        }
        for file in sorted(files, key=lambda file: file.path)
        if file.path.endswith(".parquet")
    ]


@contextmanager
def _translate_hub_errors(subject: str) -> Iterator[None]:
    """Convert the exceptions of huggingface_hub into a UserError about `subject`, a repository or file."""
    hub = redact(constants.ENDPOINT)
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{subject}: HF_HUB_OFFLINE is set; unset it, or set data.source to files or stories (no hub needed)"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"{subject}: access is restricted; request it on the page of the dataset at {hub}, then {LOG_IN}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{subject}: no such dataset at {hub}, or it is private; check the name, or {LOG_IN}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{subject}: no such branch, tag or commit at {hub}; check data.revision") from error
    except EntryNotFoundError as error:
        raise UserError(f"{subject}: no such file at {hub}; check data.repository and data.revision") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = LOG_IN if status in (401, 403) else "try again later"
        raise UserError(f"{subject}: {hub} answered {status} {error.response.reason_phrase}; {advice}") from error
    except HTTPError as error:
        raise unreachable_error(hub, error) from error
    except HFValidationError as error:
        raise UserError(f"{subject}: not a valid dataset name; expected OWNER/NAME") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{hub}: unexpected response, unlike the hub; check HF_ENDPOINT and the network") from error
