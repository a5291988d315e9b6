"""A model hub on this machine: the part of the Hugging Face API that a download uses, with faults by name."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "acme/tiny"
FIRST = "1" * 40
SECOND = "2" * 40
LARGE_BYTES = 24 << 20
"""Twice what the hub's client buffers before it writes, so that there is something to resume."""


def repository(seed: int) -> dict[str, bytes]:
    """Files of one commit. The weights are large (LFS), the rest is small; some of it vLLM does not need."""
    return {
        "config.json": json.dumps({"seed": seed}).encode(),
        "model.safetensors": bytes([seed]) * LARGE_BYTES,
        "pytorch_model.bin": b"a second copy",
        "original/consolidated.00.pth": b"a third copy",
        "tokenizer.json": b"{}",
    }


@dataclass
class Hub:
    """Its commits, what it should do wrong, and what it was asked."""

    url: str = ""
    commits: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {FIRST: repository(1), SECOND: repository(2)}
    )
    main: str = FIRST
    faults: set[str] = field(default_factory=set)
    """break: each answer for the weights ends early, once per test; lie: other bytes than promised;
    gated, missing, no-revision: the hub's own errors; down: 503; hang: the weights stop coming."""
    break_after: int = LARGE_BYTES // 2
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def environ(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@contextmanager
def serving(host: str = "127.0.0.1", port: int = 0) -> Iterator[Hub]:
    """A hub until the end of the block, by default on a free port of the loopback."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer((host, port), Handler)
    hub.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake hub")
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if (error := self._fault()) is not None:
            self._answer(b"{}", status=error[0], **{"X-Error-Code": error[1], "X-Error-Message": error[1]})
            return
        match path.strip("/").split("/"):
            case ["api", "models", org, name]:
                self._info(f"{org}/{name}", self.hub.main)
            case ["api", "models", org, name, "revision", revision]:
                self._info(f"{org}/{name}", revision)
            case ["api", "models", _, _, "tree", revision]:
                files = self.hub.commits[revision]
                self._json(
                    [{"type": "file", "path": name, **_facts(data, name)} for name, data in files.items()]
                )
            case [_, _, "resolve", revision, *parts]:
                self._file(revision, "/".join(parts))
            case _:
                self._answer(b"", status=404)

    def _fault(self) -> tuple[int, str] | None:
        for fault, error in (
            ("gated", (401, "GatedRepo")),
            ("missing", (404, "RepoNotFound")),
            ("down", (503, "Down")),
        ):
            if fault in self.hub.faults:
                return error
        return None

    def _info(self, repo: str, revision: str) -> None:
        commit = self.hub.main if revision == "main" else revision
        if commit not in self.hub.commits:
            self._answer(b"{}", status=404, **{"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [
            {"rfilename": name, **_facts(data, name)} for name, data in self.hub.commits[commit].items()
        ]
        self._json({"id": repo, "modelId": repo, "sha": commit, "gated": False, "siblings": siblings})

    def _file(self, commit: str, name: str) -> None:
        data = self.hub.commits[commit][name]
        etag = hashlib.sha256(data).hexdigest()
        if "lie" in self.hub.faults and is_large(name):
            data = bytes(len(data))
        begin = 0
        if asked := self.headers.get("Range"):
            self.hub.ranges.append(asked)
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        limit = None
        if is_large(name) and self.command == "GET":
            if "break" in self.hub.faults:
                self.hub.faults.discard("break")
                limit = self.hub.break_after
            if "hang" in self.hub.faults:
                limit = self.hub.break_after
        self._answer(data[begin:], status=206 if asked else 200, limit=limit, **headers)

    def _json(self, value: Any) -> None:
        self._answer(json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _answer(self, body: bytes, *, status: int = 200, limit: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body if limit is None else body[:limit])
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return
        if limit is not None:
            if "hang" in self.hub.faults:
                self.hub.released.wait(60)
            self.close_connection = True


def _facts(data: bytes, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    facts["blobId"] = facts["oid"]
    if is_large(name):
        digest = hashlib.sha256(data).hexdigest()
        facts["lfs"] = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 130}
    return facts
