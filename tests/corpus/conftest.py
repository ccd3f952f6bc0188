"""Fixtures to run the stage `download` against a loopback server.

The server implements as much of HTTP and the hub's protocol as the stage needs, and fails on demand.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import HfFileSystem, constants

ROOT = Path(__file__).parents[2]
STAGE = ROOT / "stages/download.py"
FLAGS = ["--raw", "raw", "--cache", "cache", "--unfinished", "unfinished", "--metrics", "metrics/download.json"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 1000  # the hub stores files of at least this size separately, under their sha256


@dataclass
class Repository:
    """A dataset on the hub: its files at one commit, and who may read it."""

    files: dict[str, bytes]
    commit: str = COMMIT
    branches: set[str] = field(default_factory=lambda: {"main"})
    token: str = ""  # required to read the dataset; "": it is public
    gated: bool = False


@dataclass
class Body:
    """A response to GET: the requested range, and how many bytes were sent."""

    path: str
    range: str
    sent: int = 0


@dataclass
class Loopback:
    """The files of the server, the ways in which it fails, and a log of the requests."""

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # "/name" -> content, as on a plain web server
    repositories: dict[str, Repository] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # the next responses are cut off after this many bytes
    statuses: list[int] = field(default_factory=list)  # the next files are refused with these status codes
    ranges: bool = True
    max_range: int = 1 << 40  # bytes of a range that are sent at once
    content_range: str | None = None  # sent in place of the right one
    if_range: bool = True  # False: the header If-Range is ignored
    validators: bool = True
    lengths: bool = True
    gzip: bool = False  # every file is sent with this content encoding, whatever the request accepts
    headers: dict[str, str] = field(default_factory=dict)  # sent with every file, in place of those of the server
    damaged: bool = False  # one bit of every file is flipped
    seconds_per_chunk: float = 0.0
    logins: list[str] = field(default_factory=list)  # the header Authorization of each request
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path
    bodies: list[Body] = field(default_factory=list)

    def clear_log(self) -> None:
        """Forget all requests, including those of a killed client that are still being served."""
        self.requests, self.bodies = [], []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def do_POST(self) -> None:
        self.respond()

    def respond(self) -> None:
        request_body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.loopback.requests.append((self.command, path))
        self.loopback.logins.append(self.headers.get("Authorization", ""))
        segments = path.strip("/").split("/")
        if path in self.loopback.files:
            self.send_file(path, self.loopback.files[path], {})
        elif segments[0] == "api":
            self.respond_api("/".join(segments[2:4]), segments[4:], request_body)
        elif segments[0] == "datasets":
            self.respond_resolve("/".join(segments[1:3]), segments[4], "/".join(segments[5:]))
        elif segments[0] == "cdn":
            bodies = {sha(body): body for repo in self.loopback.repositories.values() for body in repo.files.values()}
            self.send_file(path, bodies[segments[1]], {})
        else:
            self.send_hub_error(404, "")

    def find_repository(self, name: str, revision: str, metadata: bool) -> Repository | None:
        """Return a repository, or send the hub's error and return None if it does not exist or is not accessible."""
        repository = self.loopback.repositories.get(name)
        login = self.headers.get("Authorization", "")
        if repository is None or (repository.token and not repository.gated and login != f"Bearer {repository.token}"):
            self.send_hub_error(401, "RepoNotFound")
        elif repository.gated and not metadata and login != f"Bearer {repository.token}":
            self.send_hub_error(403 if login else 401, "GatedRepo")
        elif revision not in repository.branches | {repository.commit}:
            self.send_hub_error(404, "RevisionNotFound")
        else:
            return repository
        return None

    def respond_api(self, name: str, rest: list[str], request_body: bytes) -> None:
        kind, revision = rest[:2] if rest else ("revision", "main")
        if (repository := self.find_repository(name, revision, metadata=True)) is None:
            return
        entries = [
            {
                "type": "file",
                "path": path,
                "size": len(body),
                "oid": git_blob(body),
                **({"lfs": {"oid": sha(body), "size": len(body), "pointerSize": 134}} if is_large(body) else {}),
            }
            for path, body in sorted(repository.files.items())
        ]
        if kind == "tree":
            self.send_json(entries)
        elif kind == "paths-info":
            wanted = (
                json.loads(request_body)["paths"] if request_body.startswith(b"{") else unquote(request_body.decode())
            )
            self.send_json([entry for entry in entries if entry["path"] in wanted])
        else:
            siblings = [{"rfilename": path} for path in repository.files]
            self.send_json({"id": name, "sha": repository.commit, "siblings": siblings, "tags": []})

    def respond_resolve(self, name: str, revision: str, path: str) -> None:
        if (repository := self.find_repository(name, revision, metadata=False)) is None:
            return
        if path not in repository.files:
            return self.send_hub_error(404, "EntryNotFound")
        body = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit}
        if not is_large(body):
            return self.send_file(self.path, body, {**headers, "ETag": f'"{git_blob(body)}"'})
        self.send_response(302)
        headers |= {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha(body)}"', "Content-Length": "0"}
        # A redirect to another host, as on the hub; the client does not follow it to get the size.
        headers["Location"] = f"{self.loopback.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{sha(body)}"
        self.send_headers(headers)

    def send_file(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        tag = {"ETag": f'"{sha(body)}"'} if self.loopback.validators else {}
        headers = {"Accept-Ranges": "bytes", **tag, **headers, **self.loopback.headers}
        if self.loopback.gzip:
            body, headers["Content-Encoding"] = gzip.compress(body, mtime=0), "gzip"
        first, last = 0, len(body) - 1
        wanted = self.headers.get("Range", "")
        versions = {None, headers.get("ETag"), headers.get("Last-Modified")}
        changed = self.loopback.if_range and self.headers.get("If-Range") not in versions
        partial = wanted and self.loopback.ranges and not changed
        if partial:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), int(start) + self.loopback.max_range - 1, last)
            if first > last:
                return self.send_hub_error(416, "")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            if self.loopback.content_range is not None:
                headers["Content-Range"] = self.loopback.content_range
        if self.command == "GET" and self.loopback.statuses:
            return self.send_hub_error(self.loopback.statuses.pop(0), "")
        if self.loopback.damaged:
            body = bytes([body[0] ^ 1]) + body[1:]
        body = body[first : last + 1]
        self.send_response(206 if partial else 200)
        if self.loopback.lengths:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Connection"] = "close"
        response = Body(path, self.headers.get("Range", ""))
        if self.command == "GET":
            self.loopback.bodies.append(response)  # before the client can react to the headers with another request
        self.send_headers(headers)
        if self.command == "GET":
            self.send_body(body, response)

    def send_body(self, body: bytes, response: Body) -> None:
        stop = self.loopback.cuts.pop(0) if self.loopback.cuts else len(body)
        for start in range(0, min(stop, len(body)), 1 << 14):
            chunk = body[start : min(start + (1 << 14), stop)]
            response.sent += len(chunk)  # before the client can receive it
            self.wfile.write(chunk)
            time.sleep(self.loopback.seconds_per_chunk)
        if stop < len(body):
            self.close_connection = True

    def send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_headers({"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def send_hub_error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_headers({"Content-Length": "0", **({"X-Error-Code": code} if code else {})})

    def send_headers(self, headers: dict[str, str]) -> None:
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def is_large(body: bytes) -> bool:
    return len(body) >= LARGE_BYTES


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    state = Loopback()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"loopback": state}))
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def add_repository(loopback: Loopback) -> Callable[..., Repository]:
    """Add a dataset to the loopback hub: add_repository("owner/name", files={"a.txt": b"..."})."""

    def add(name: str, **fields: Any) -> Repository:
        return loopback.repositories.setdefault(name, Repository(**fields))

    return add


def use_hub(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set HF_ENDPOINT and what the libraries that are already imported have derived from it."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    if datasets := sys.modules.get("datasets"):
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def write_params(tmp_path: Path) -> Callable[..., None]:
    """Write params.yaml with the given values in section `data`, where train_bytes and val_bytes are 0 by default."""
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

    def write(**data: Any) -> None:
        changes = {"source": "tinystories", "train_bytes": 0, "val_bytes": 0, **data}
        text = yaml.safe_dump({**sections, "data": {**sections["data"], **changes}})
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def run_stage(
    write_params: Callable[..., None], loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run the stage in this process, in an empty folder, and return its error message, or "" if it succeeds.

    The hub is at `loopback.endpoint` and there is no stored login.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(sys, "argv", ["download.py", *FLAGS])

    def run(**data: Any) -> str:
        write_params(**data)
        use_hub(loopback.endpoint, monkeypatch)
        messages = io.StringIO()
        try:
            with contextlib.redirect_stderr(messages):
                runpy.run_path(str(STAGE), run_name="__main__")
        except SystemExit:
            return messages.getvalue().rstrip("\n").rpartition("\n")[2]
        finally:
            print(messages.getvalue(), end="", file=sys.stderr)
        return ""

    return run


@pytest.fixture
def start_stage(
    write_params: Callable[..., None], loopback: Loopback, tmp_path: Path
) -> Callable[..., "subprocess.Popen[str]"]:
    """Start the stage in its own process, where the libraries read HF_ENDPOINT and other variables at import.

    Unlike `run_stage`, this can be killed, and needs no patched library.
    """

    def start(environment: dict[str, str] | None = None, **data: Any) -> "subprocess.Popen[str]":
        write_params(**data)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        hub = {"HF_ENDPOINT": loopback.endpoint, "HF_HOME": str(tmp_path / "home")}
        return subprocess.Popen(
            [sys.executable, "-m", "stages.download", *FLAGS],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(ROOT), **hub, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run_process(start_stage: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., str]:
    """Like `run_stage`, in its own process."""

    def run(**settings: Any) -> str:
        process = start_stage(**settings)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        return errors.rstrip().rpartition("\n")[2] if process.returncode else ""

    return run
