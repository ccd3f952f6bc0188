"""A server on the loopback interface that speaks enough of HTTP and of the hub's protocol, and fails on demand.

The stage runs against it in a process of its own, since HF_ENDPOINT is read when the libraries load.
"""

import hashlib
import json
import os
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

ROOT = Path(__file__).parents[2]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 1000  # the hub keeps files from here on apart, under their sha256


@dataclass
class Repository:
    """A data set on the hub: its files at one commit, and who may read it."""

    files: dict[str, bytes]
    commit: str = COMMIT
    branches: set[str] = field(default_factory=lambda: {"main"})
    token: str = ""  # the only one that may read; "": anyone
    gated: bool = False


@dataclass
class Body:
    """An answer to GET: which bytes were asked for, how many were sent."""

    path: str
    range: str
    sent: int = 0


@dataclass
class Loopback:
    """What the server holds, how it misbehaves, and what was asked of it."""

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # "/name" -> body, of a plain web server
    repositories: dict[str, Repository] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # the next bodies break off after so many bytes
    statuses: list[int] = field(default_factory=list)  # the next bodies are refused with these
    ranges: bool = True
    validators: bool = True
    lengths: bool = True
    damaged: bool = False  # bodies of the right length, one bit wrong
    seconds_a_chunk: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path
    bodies: list[Body] = field(default_factory=list)

    def forget(self) -> None:
        """Forget what was asked and sent; a killed client's answer, still being written, does not count either."""
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
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.loopback.requests.append((self.command, path))
        segments = path.strip("/").split("/")
        if path in self.loopback.files:
            self.send_file(path, self.loopback.files[path], {})
        elif segments[0] == "api":
            self.answer_api("/".join(segments[2:4]), segments[4:], asked)
        elif segments[0] == "datasets":
            self.answer_resolve("/".join(segments[1:3]), segments[4], "/".join(segments[5:]))
        elif segments[0] == "cdn":
            bodies = {sha(body): body for repo in self.loopback.repositories.values() for body in repo.files.values()}
            self.send_file(path, bodies[segments[1]], {})
        else:
            self.send_error_code(404, "")

    def find(self, name: str, revision: str, metadata: bool) -> Repository | None:
        """The repository, or None after the hub's own answer to who may not see it or asks for what is not there."""
        repository = self.loopback.repositories.get(name)
        login = self.headers.get("Authorization", "")
        if repository is None or (repository.token and not repository.gated and login != f"Bearer {repository.token}"):
            self.send_error_code(401, "RepoNotFound")
        elif repository.gated and not metadata and login != f"Bearer {repository.token}":
            self.send_error_code(403 if login else 401, "GatedRepo")
        elif revision not in repository.branches | {repository.commit}:
            self.send_error_code(404, "RevisionNotFound")
        else:
            return repository
        return None

    def answer_api(self, name: str, rest: list[str], asked: bytes) -> None:
        kind, revision = rest[:2] if rest else ("revision", "main")
        if (repository := self.find(name, revision, metadata=True)) is None:
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
            wanted = json.loads(asked)["paths"] if asked.startswith(b"{") else unquote(asked.decode())
            self.send_json([entry for entry in entries if entry["path"] in wanted])
        else:
            siblings = [{"rfilename": path} for path in repository.files]
            self.send_json({"id": name, "sha": repository.commit, "siblings": siblings, "tags": []})

    def answer_resolve(self, name: str, revision: str, path: str) -> None:
        if (repository := self.find(name, revision, metadata=False)) is None:
            return
        if path not in repository.files:
            return self.send_error_code(404, "EntryNotFound")
        body = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit}
        if not is_large(body):
            return self.send_file(self.path, body, {**headers, "ETag": f'"{git_blob(body)}"'})
        self.send_response(302)
        headers |= {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha(body)}"', "Content-Length": "0"}
        # Another host name, as for the hub's own store: the client does not follow it to ask for the size.
        headers["Location"] = f"{self.loopback.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{sha(body)}"
        self.send_headers(headers)

    def send_file(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        tag = {"ETag": f'"{sha(body)}"'} if self.loopback.validators else {}
        headers = {"Accept-Ranges": "bytes", **tag, **headers}
        first, last = 0, len(body) - 1
        wanted = self.headers.get("Range", "")
        changed = self.headers.get("If-Range", headers.get("ETag")) != headers.get("ETag")
        partial = wanted and self.loopback.ranges and not changed
        if partial:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
            if first > last:
                return self.send_error_code(416, "")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        if self.command == "GET" and self.loopback.statuses:
            return self.send_error_code(self.loopback.statuses.pop(0), "")
        if self.loopback.damaged:
            body = bytes([body[0] ^ 1]) + body[1:]
        body = body[first : last + 1]
        self.send_response(206 if partial else 200)
        if self.loopback.lengths:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Connection"] = "close"
        self.send_headers(headers)
        if self.command == "GET":
            self.send_body(path, body)

    def send_body(self, path: str, body: bytes) -> None:
        answer = Body(path, self.headers.get("Range", ""))
        self.loopback.bodies.append(answer)
        stop = self.loopback.cuts.pop(0) if self.loopback.cuts else len(body)
        for start in range(0, min(stop, len(body)), 1 << 14):
            chunk = body[start : min(start + (1 << 14), stop)]
            answer.sent += len(chunk)  # before the client can look
            self.wfile.write(chunk)
            time.sleep(self.loopback.seconds_a_chunk)
        if stop < len(body):
            self.close_connection = True

    def send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_headers({"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def send_error_code(self, status: int, code: str) -> None:
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
    """Put a data set on the loopback hub: add_repository("owner/name", files={"a.txt": b"..."})."""

    def add(name: str, **fields: Any) -> Repository:
        return loopback.repositories.setdefault(name, Repository(**fields))

    return add


@pytest.fixture
def start(loopback: Loopback, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start the stage in an empty folder; keywords change the section `data`, whose limits are 0."""

    def start(environment: dict[str, str] | None = None, **data: Any) -> "subprocess.Popen[str]":
        params = (ROOT / "params.yaml").read_text().partition("\ntokenizer:")
        section = yaml.safe_load(params[0])
        section["data"] |= {"source": "tinystories", "train_bytes": 0, "val_bytes": 0, **data}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(section) + "".join(params[1:]))
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        hub = {"HF_ENDPOINT": loopback.endpoint, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, str(ROOT / "stages/download.py"), "--raw", "raw", "--cache", "cache"]
        return subprocess.Popen(
            [*command, "--metrics", "metrics/download.json"],
            cwd=tmp_path,
            env={**clean, **hub, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., tuple[int, str]]:
    """Run the stage to its end as `start` does: exit status, and the last line on stderr."""

    def run(**settings: Any) -> tuple[int, str]:
        process = start(**settings)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        return process.returncode, errors.rstrip().rpartition("\n")[2]

    return run
