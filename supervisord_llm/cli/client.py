"""HTTP over the control socket, as HTTP/1.0: one request a connection, the answer ends where it closes.

Forty lines instead of http.client, whose import alone (email, ssl) would double the time of `status`.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from supervisord_llm.errors import SupervisorError

ANSWER_TIMEOUT_S = 10.0
"""For questions that the daemon answers from memory."""


class Unreachable(SupervisorError):
    """Nobody answers at the control socket, or this user may not ask."""


class Declined(SupervisorError):
    """The daemon answered with an error; `code` is `error.code` of the HTTP error table."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Asks the daemon behind one control socket. Every method raises Unreachable and Declined."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, *segments: str, **query: object) -> Any:
        """The JSON that a GET of /admin/SEGMENTS?QUERY answers."""
        with self._ask("GET", segments, query, timeout_s=ANSWER_TIMEOUT_S) as answer:
            return _decoded(answer)

    def models(self) -> Any:
        """The JSON that GET /v1/models answers."""
        with self._ask("GET", ("models",), {}, timeout_s=ANSWER_TIMEOUT_S, root="/v1") as answer:
            return _decoded(answer)

    def post(self, *segments: str, **body: object) -> Any:
        """The JSON that a POST of `body` answers, however long that takes."""
        with self._ask("POST", segments, {}, json.dumps(body).encode()) as answer:
            return _decoded(answer)

    def lines(self, *segments: str, **query: object) -> Iterator[str]:
        """The lines of a text, as they are."""
        with self._ask("GET", segments, query, timeout_s=ANSWER_TIMEOUT_S) as answer:
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")

    def events(self, *segments: str, **query: object) -> Iterator[str]:
        """The `data` of each server-sent event, for as long as the daemon sends some."""
        with self._ask("GET", segments, query) as answer:
            data: list[str] = []
            for raw in answer:
                line = raw.decode(errors="replace").rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    yield "\n".join(data)
                    data = []

    @contextlib.contextmanager
    def _ask(
        self,
        method: str,
        segments: tuple[str, ...],
        query: dict[str, object],
        body: bytes = b"",
        timeout_s: float | None = None,
        root: str = "/admin",
    ) -> Iterator[BufferedReader]:
        """The body of a good answer."""
        path = "/".join([root, *(quote(segment, safe="") for segment in segments)])
        target = f"{path}?{urlencode(query)}" if query else path
        head = (
            f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with self._connect(timeout_s) as connection, connection.makefile("rb") as answer:
            try:
                connection.sendall(head.encode() + body)
                status = _status(answer)
                if status >= 400:
                    raise _declined(status, answer.read())
                yield answer
            except TimeoutError:
                raise Unreachable(
                    f"cannot get an answer from the daemon at {self.path} within {ANSWER_TIMEOUT_S:.0f} s: "
                    "see its log, or restart it with `systemctl restart llm-supervisor`"
                ) from None
            except ConnectionError:
                raise Unreachable(
                    f"cannot read the answer of the daemon at {self.path}: it went away; "
                    "see its log with `journalctl -u llm-supervisor`"
                ) from None

    def _connect(self, timeout_s: float | None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self.path))
        except PermissionError:
            connection.close()
            raise Unreachable(f"cannot open {self.path}: {_who_may(self.path)}") from None
        except OSError:
            connection.close()
            raise Unreachable(
                f"cannot reach the daemon at {self.path}: is it running? "
                "start it with `systemctl start llm-supervisor` or `llm-supervisor serve`"
            ) from None
        return connection


def _status(answer: BufferedReader) -> int:
    """Read the head; the HTTP status."""
    words = answer.readline().split()
    while answer.readline().strip():
        pass
    if len(words) < 2:
        raise ConnectionResetError
    return int(words[1])


def _decoded(answer: BufferedReader) -> Any:
    try:
        return json.load(answer)
    except ValueError:  # cut off
        raise ConnectionResetError from None


def _declined(status: int, body: bytes) -> Declined:
    try:
        error = json.loads(body)["error"]
        return Declined(str(error["message"]), str(error["code"]))
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip()
        return Declined(f"cannot do it: the daemon answered {status} {text}".rstrip(), "")


def _who_may(path: Path) -> str:
    group = _group(path)
    if group is None:
        return "only root may; use sudo"
    return (
        f"only root and group {group} may; use sudo, or join with "
        f"`sudo usermod -aG {group} $USER` and log in again"
    )


def _group(path: Path) -> str | None:
    """The group of the socket, or of the directory that hides it; None where it is root's or unknown."""
    import grp

    for each in (path, path.parent):
        with contextlib.suppress(OSError, KeyError):
            gid = each.stat().st_gid
            return grp.getgrgid(gid).gr_name if gid else None
    return None
