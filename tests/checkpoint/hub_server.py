"""The few routes of the Hugging Face hub that a download uses, on this machine, with faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"
LARGE = 10_000  # files from this size on are kept outside git, with a SHA-256


@dataclass
class HubServer:
    """`files` of one repository; faults are set by the test."""

    repo: str
    files: dict[str, bytes]
    endpoint: str = ""
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    gated: bool = False
    token: str = ""  # what opens a gated repository
    status: int = 0  # answered to everything
    cuts: dict[str, int] = field(default_factory=dict)  # file -> bytes until the line breaks
    fatal: bool = False  # a cut is followed by silence
    dead: bool = False
    damage: str = ""  # a file whose bytes change on their way
    sent: Counter[str] = field(default_factory=Counter)  # bytes of bodies, by file
    requests: list[str] = field(default_factory=list)

    def info(self, commit: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if len(data) >= LARGE:
                row["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(row)
        return {"id": self.repo, "sha": commit, "siblings": siblings}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Server(ThreadingHTTPServer):
    hub: HubServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        assert isinstance(self.server, Server)
        return self.server.hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.dead:
            self.close_connection = True
            return
        if self.hub.status:
            return self.fail(self.hub.status)
        if path.startswith("/cdn/"):
            return self.elsewhere(path.removeprefix("/cdn/"), body)
        api, resolve = f"/api/models/{self.hub.repo}/revision/", f"/{self.hub.repo}/resolve/"
        if not path.startswith((api, resolve)):
            return self.fail(401, "RepoNotFound")
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        rest = path.removeprefix(api).removeprefix(resolve)
        if path.startswith(api):
            if rest not in self.hub.revisions:
                return self.fail(404, "RevisionNotFound")
            return self.send(json.dumps(self.hub.info(COMMIT)).encode(), {}, body)
        if self.hub.gated and not (self.hub.token and allowed):
            return self.fail(401, "GatedRepo")
        revision, _, name = rest.partition("/")
        if revision not in self.hub.revisions or name not in self.hub.files:
            return self.fail(404, "EntryNotFound")
        self.file(name, self.hub.files[name], body)

    def file(self, name: str, data: bytes, body: bool) -> None:
        large = len(data) >= LARGE
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{sha256(data) if large else git_hash(data)}"',
            "Accept-Ranges": "bytes",
        }
        if not large:
            return self.send(data, headers, body, name)
        # As on the hub: the file lies elsewhere, and this answer says what it is.
        place = f"http://localhost:{self.server.server_port}/cdn/{name}"
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        self.send(b"", headers | linked | {"Location": place}, body, status=302)

    def elsewhere(self, name: str, body: bool) -> None:
        """What is fetched from the address that the hub names; the token must not come along."""
        if "Authorization" in self.headers:
            return self.fail(400)
        data = self.hub.files[name]
        data = bytes(len(data)) if name == self.hub.damage else data
        self.send(data, {"Accept-Ranges": "bytes"}, body, name)

    def send(
        self,
        data: bytes,
        headers: dict[str, str],
        body: bool,
        name: str = "",
        status: int = 200,
    ) -> None:
        begin = 0
        wanted = self.headers.get("Range", "")
        if name and wanted.startswith("bytes="):
            begin, status = int(wanted[6:].split("-")[0]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        rest = data[begin:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(rest))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        cut = self.hub.cuts.pop(name, None)
        rest = rest if cut is None else rest[:cut]
        self.hub.sent[name] += len(rest)
        self.wfile.write(rest)
        if cut is not None:
            self.hub.dead = self.hub.fatal
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def fail(self, status: int, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()


@contextmanager
def serve(hub: HubServer) -> Iterator[HubServer]:
    """The server, running in a thread of its own; `hub.endpoint` is its address."""
    server = Server(("127.0.0.1", 0), Handler)
    server.hub, server.daemon_threads = hub, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
