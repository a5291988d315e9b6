"""What a real AF_UNIX datagram socket in systemd's place receives."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_llm.systemd.notify import Notifier, watchdog_interval_s


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's end of $NOTIFY_SOCKET. Datagrams are there once the sender returns."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield end


@pytest.fixture
def notifier(systemd: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier()
    yield notifier
    notifier.close()


def test_ready_arrives_beside_a_status_that_is_not_latin(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.ready("加载 models ä")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=?? models ?"


def test_a_line_break_in_the_status_cannot_become_a_field(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.status("loading\nSTOPPING=1")
    assert systemd.recv(4096) == b"STATUS=loading STOPPING=1"


def test_each_call_is_one_datagram(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.ready()
    notifier.watchdog()
    notifier.stopping("2 engines left")
    notifier.status("")  # nothing to say
    assert [systemd.recv(4096) for _ in range(3)] == [
        b"READY=1",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=2 engines left",
    ]
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


def test_a_reload_carries_the_monotonic_clock(systemd: socket.socket, notifier: Notifier) -> None:
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading("reloading")
    first, clock, status = systemd.recv(4096).decode().splitlines()
    assert (first, status) == ("RELOADING=1", "STATUS=reloading")
    name, _, value = clock.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_us <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


async def test_a_pause_lasts_until_the_signs_of_life_begin_again(
    systemd: socket.socket, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier.pausing(60)  # no watchdog in this unit
    monkeypatch.setenv("WATCHDOG_USEC", "15000000")
    notifier.pausing(60)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(notifier.watch(), 0.1)
    assert [systemd.recv(4096) for _ in range(3)] == [
        b"WATCHDOG_USEC=60000000\nWATCHDOG=1",
        b"WATCHDOG_USEC=15000000\nWATCHDOG=1",
        b"WATCHDOG=1",
    ]


def test_outside_systemd_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("serving")


def test_a_manager_that_is_gone_is_no_error(systemd: socket.socket, notifier: Notifier) -> None:
    systemd.close()
    notifier.watchdog()


def test_after_close_it_is_silent(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.close()
    notifier.ready()
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_of_what_is_allowed(
    environ: dict[str, str], expected: float | None
) -> None:
    assert watchdog_interval_s(environ) == expected


def test_a_manager_that_does_not_read_holds_nobody_up(systemd: socket.socket, notifier: Notifier) -> None:
    """The kernel queues some datagrams; the next blocking send would stop the event loop for good."""
    began = time.monotonic()
    for _ in range(2000):
        notifier.status("busy")
        notifier.watchdog()
    notifier.stopping("draining")
    assert time.monotonic() - began < 3
    with contextlib.suppress(BlockingIOError):
        while systemd.recv(4096):
            pass
    notifier.ready("back")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=back"
