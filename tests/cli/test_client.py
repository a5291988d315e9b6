"""The client against scripted answers, and against sockets that refuse."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisord_llm.cli.client import Client, Declined, Unreachable

Serve = Callable[[bytes], Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve(bytes) answers one request with them and closes; `requests` keeps what was asked."""
    path = tmp_path / "control.sock"
    listener = socket.socket(socket.AF_UNIX)
    threads: list[threading.Thread] = []

    def serve(answer: bytes) -> Client:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                (tmp_path / "request").write_bytes(connection.recv(65536))
                connection.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[0].start()
        return Client(path)

    yield serve
    for thread in threads:
        thread.join()
    listener.close()


def test_a_question_is_one_http_request(serve: Serve, tmp_path: Path) -> None:
    client = serve(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"a": 1}')
    assert client.get("logs", "a/b c", n=5) == {"a": 1}
    request = (tmp_path / "request").read_bytes()
    assert request.startswith(b"GET /admin/logs/a%2Fb%20c?n=5 HTTP/1.0\r\nHost: ")
    assert request.endswith(b"Content-Length: 0\r\n\r\n")


def test_server_sent_events_are_told_one_by_one(serve: Serve) -> None:
    client = serve(
        b"HTTP/1.0 200 OK\r\n\r\n"
        b": keep-alive\n\ndata: one\n\nevent: x\ndata:two\ndata: lines\r\n\r\ndata: cut off"
    )
    assert list(client.events("events")) == ["one", "two\nlines"]


def test_the_daemons_error_is_raised_with_its_code(serve: Serve) -> None:
    client = serve(
        b'HTTP/1.1 404 Not Found\r\n\r\n{"error": {"message": "cannot find x", "code": "not_found"}}'
    )
    with pytest.raises(Declined, match="cannot find x") as declined:
        client.post("start", model="x")
    assert declined.value.code == "not_found"


def test_an_error_of_another_shape_is_shown_as_it_is(serve: Serve) -> None:
    with pytest.raises(Declined, match="the daemon answered 500 oops"):
        serve(b"HTTP/1.1 500 Internal Server Error\r\n\r\noops\n").get("status")


def test_an_answer_that_is_cut_off_is_a_daemon_that_went_away(serve: Serve) -> None:
    with pytest.raises(Unreachable, match="it went away"):
        serve(b"").get("status")


def test_a_dead_daemons_socket_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(Unreachable, match="is it running"):
        Client(path).get("status")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_who_may_is_said(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0)
        with pytest.raises(Unreachable, match=r"cannot open .*control\.sock: only root"):
            Client(path).get("status")


def test_the_group_that_may_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("supervisord_llm.cli.client._group", lambda path: "llm-supervisor")
    monkeypatch.setattr(socket, "socket", lambda *_: _Refusing())
    with pytest.raises(Unreachable, match=r"usermod -aG llm-supervisor \$USER"):
        Client(tmp_path / "control.sock").get("status")


class _Refusing:
    def settimeout(self, timeout_s: float | None) -> None: ...

    def connect(self, path: str) -> None:
        raise PermissionError

    def close(self) -> None: ...
