"""The unit's end of the socket, towards one who asks and behaves badly."""

import asyncio
import socket

import pytest

from supervisord_llm.provision import fetch_unit
from supervisord_llm.provision.fetch_unit import Requester
from supervisord_llm.runtime.ports import Progress


async def test_one_who_never_reads_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_unit, "STOP_TIMEOUT_S", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"chat\n")
        requester = Requester(ours.fileno())
        assert await requester.asks_for() == "chat"

        async def work() -> None:
            requester.report(Progress("x" * (1 << 20)))

        assert await asyncio.wait_for(requester.answer(work), 5)
